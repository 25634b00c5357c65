// Opens an index and runs queries: routes, fills the look-up table, scans the partitions, keeps the best hits.
#include "index/index.h"

#include <algorithm>
#include <cmath>
#include <cstring>
#include <utility>

#include "index/numbered_key.h"

namespace searchforge {
namespace {

constexpr char kConfigKey[] = "INDEX_CONFIG", kUserInfoKey[] = "USER_INFO";

}  // namespace

// Memory of one query.
struct Index::Scratch {
  explicit Scratch(const Index& index) : route(*index.router_), table(*index.codebooks_) {}

  Router::Scratch route;
  LookupTable table;
  TopHits hits;
  TableBuffer buffer;
};

// Borrows memory for the duration of its scope.
class Index::Lease {
 public:
  explicit Lease(const Index& index) : index_(index) {
    {
      const std::lock_guard<std::mutex> lock(index_.mutex_);
      if (!index_.idle_.empty()) {
        scratch_ = std::move(index_.idle_.back());
        index_.idle_.pop_back();
        return;
      }
      index_.idle_.reserve(++index_.leased_);  // so that giving back cannot fail
    }
    scratch_ = std::make_unique<Scratch>(index_);
  }
  Lease(const Lease&) = delete;
  Lease& operator=(const Lease&) = delete;
  ~Lease() {
    const std::lock_guard<std::mutex> lock(index_.mutex_);
    if (scratch_ != nullptr) index_.idle_.push_back(std::move(scratch_));
  }
  Scratch& operator*() { return *scratch_; }

 private:
  const Index& index_;
  std::unique_ptr<Scratch> scratch_;
};

Index::Index(std::unique_ptr<Source> source, ModelFile model, Table table)
    : source_(std::move(source)), model_(std::move(model)), table_(std::move(table)), kernels_(ChosenKernels()) {}

Index::~Index() = default;

Result<std::unique_ptr<Index>> Index::Open(std::unique_ptr<Source> source) {
  Result<ModelFile> model = ReadModelFile(*source);
  if (!model.ok()) return model.status();
  Result<Table> table = Table::Open(*source, model.value().index.offset, model.value().index.size);
  if (!table.ok()) return table.status();
  std::unique_ptr<Index> index(new Index(std::move(source), std::move(model.value()), std::move(table.value())));
  SF_RETURN_IF_ERROR(index->Load());
  return index;
}

Status Index::Load() {
  TableBuffer buffer;
  std::optional<TableValue> value;
  SF_ASSIGN_OR_RETURN(value, table_.Find(kUserInfoKey, buffer));
  if (value) user_info_ = value->bytes.text();
  SF_ASSIGN_OR_RETURN(value, table_.Find(kConfigKey, buffer));
  if (!value) return Damaged("the index has no configuration; download the file again");
  const Result<IndexConfig> parsed = ParseIndexConfig(value->bytes);
  if (!parsed.ok()) return parsed.status();
  const IndexConfig& config = parsed.value();
  SF_ASSIGN_OR_RETURN(partitions_, Partitions::Open(table_, config));
  router_ = std::make_unique<Router>(config);
  codebooks_ = std::make_unique<Codebooks>(config);
  shape_ = {partitions_->items(), config.dim, config.partitions, config.partitions_searched(), config.blocks, config.lookup_type};
  return {};
}

Status Index::Search(const float* query, size_t dim, size_t k, uint32_t partitions, sf_hit* hits, size_t* found) const {
  if (dim != shape_.dim) {
    return InvalidArgument("the query has " + std::to_string(dim) + " dimensions, expected " + std::to_string(shape_.dim) +
                           "; embed it with the encoder of this index");
  }
  if (partitions > shape_.partitions) {
    return InvalidArgument(std::to_string(partitions) + " partitions to search were given, expected 1 to " +
                           std::to_string(shape_.partitions) + ", or 0 for the index's own number");
  }
  if (k == 0) return InvalidArgument("k is 0, expected 1 or more");
  if (!std::all_of(query, query + dim, [](float number) { return std::isfinite(number); })) {
    return InvalidArgument("the query contains NaN or infinity; check the encoder's output");
  }
  Lease lease(*this);
  Scratch& scratch = *lease;
  scratch.hits.Reset(std::min<size_t>(k, shape_.items));
  const uint32_t searched = partitions > 0 ? partitions : shape_.partitions_searched;
  if (!scratch.table.Fill(*codebooks_, kernels_, query)) {
    return InvalidArgument("the query's numbers are too large for scores; normalize it to length 1");
  }
  const uint64_t* route = router_->Route(kernels_, query, searched, scratch.route);
  for (uint32_t i = 0; i < searched && shape_.items > 0; ++i) {
    Codes codes;
    SF_ASSIGN_OR_RETURN(codes, partitions_->Read(static_cast<uint32_t>(route[i]), scratch.buffer));
    if (i + 1 < searched) partitions_->Prefetch(static_cast<uint32_t>(route[i + 1]));
    Scan(codes, scratch);
  }
  const std::vector<Hit>& best = scratch.hits.Sorted();
  std::transform(best.begin(), best.end(), hits, [](const Hit& hit) { return sf_hit{-hit.distance, hit.item}; });
  *found = best.size();
  return {};
}

void Index::Scan(const Codes& codes, Scratch& scratch) const {
  const size_t width = shape_.code_bytes;
  TopHits& hits = scratch.hits;
  uint32_t most = scratch.table.SumBelow(hits.limit());
  uint32_t sums[kScanned];
  for (uint32_t start = 0; start < codes.count; start += kScanned) {
    const uint32_t count = std::min(kScanned, codes.count - start);
    const uint8_t* const first = codes.data + start * width;
    kernels_.sums(first, count, width, scratch.table.bytes(), sums);
    for (uint32_t i = 0; i < count; ++i) {
      if (sums[i] > most) continue;
      const Hit hit{scratch.table.Distance(first + i * width), codes.first + start + i};
      if (hits.full() && hit.distance > hits.limit()) continue;
      hits.Add(hit);
      most = scratch.table.SumBelow(hits.limit());
    }
  }
}

Status Index::Metadata(uint32_t item, uint8_t* target, size_t capacity, size_t* length) const {
  if (item >= shape_.items) {
    return InvalidArgument("item " + std::to_string(item) + " was asked for, but the index has " +
                           std::to_string(shape_.items) + " items, numbered from 0");
  }
  Lease lease(*this);
  std::optional<TableValue> value;
  SF_ASSIGN_OR_RETURN(value, table_.Find(NumberedKey("M_", item).text(), (*lease).buffer));
  if (!value) return Damaged("item " + std::to_string(item) + " has no metadata; download the file again");
  const size_t copied = std::min(capacity, value->bytes.size);
  if (copied > 0) std::memcpy(target, value->bytes.data, copied);
  *length = value->bytes.size;
  return {};
}

Status Index::Verify() const {
  SF_RETURN_IF_ERROR(table_.Verify());
  TableBuffer buffer;
  for (uint32_t partition = 0; partition < shape_.partitions; ++partition) {
    SF_RETURN_IF_ERROR(partitions_->Read(partition, buffer).status());
  }
  for (uint32_t item = 0; item < shape_.items; ++item) {
    size_t length;
    SF_RETURN_IF_ERROR(Metadata(item, nullptr, 0, &length));
  }
  return {};
}

}  // namespace searchforge
