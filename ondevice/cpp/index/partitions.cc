// Reads and verifies the codes of partitions: values E_0, E_1 and so on of the table.
#include "index/partitions.h"

#include <algorithm>
#include <string>

#include "index/numbered_key.h"

namespace searchforge {
namespace {

// A table holds at most this many times its bytes when it is decompressed.
constexpr uint64_t kMaxExpansion = 64;

// Bytes at a partition's start that are loaded ahead; the processor foresees the rest.
constexpr size_t kPrefetched = 4096, kCacheLine = 64;

Status DamagedPartition(uint32_t partition, const std::string& what) {
  return Damaged("partition " + std::to_string(partition) + " of the index " + what + "; download the file again");
}

}  // namespace

Partitions::Partitions(const Table& table, const IndexConfig& config)
    : table_(table),
      code_bytes_(config.blocks),
      entries_(config.entries),
      starts_(config.partition_offsets),
      ends_(config.partition_offsets.begin() + 1, config.partition_offsets.end()),
      verified_(new std::atomic<const uint8_t*>[config.partitions]()) {}

Result<std::unique_ptr<Partitions>> Partitions::Open(const Table& table, const IndexConfig& config) {
  std::unique_ptr<Partitions> partitions(new Partitions(table, config));
  TableBuffer buffer;
  TableValue last;  // only its size tells how many items there are
  SF_ASSIGN_OR_RETURN(last, partitions->Find(config.partitions - 1, buffer));
  const uint64_t items = partitions->starts_.back() + last.bytes.size / config.blocks;
  if (items > INT32_MAX || items * config.blocks > kMaxExpansion * table.size()) {
    return Damaged("the index claims " + std::to_string(items) + " items, more than its " + std::to_string(table.size()) +
                   " bytes can hold; download the file again");
  }
  partitions->ends_.push_back(static_cast<uint32_t>(items));
  return partitions;
}

Result<TableValue> Partitions::Find(uint32_t partition, TableBuffer& buffer) const {
  std::optional<TableValue> value;
  SF_ASSIGN_OR_RETURN(value, table_.Find(NumberedKey("E_", partition).text(), buffer));
  if (!value) return DamagedPartition(partition, "is missing");
  return *value;
}

void Partitions::Prefetch(uint32_t partition) const {
  const uint8_t* const codes = verified_[partition].load(std::memory_order_relaxed);
  if (codes == nullptr) return;
  const size_t size = size_t{ends_[partition] - starts_[partition]} * code_bytes_;
  for (size_t offset = 0; offset < std::min(size, kPrefetched); offset += kCacheLine) __builtin_prefetch(codes + offset);
}

Result<Codes> Partitions::Read(uint32_t partition, TableBuffer& buffer) const {
  const uint32_t first = starts_[partition], count = ends_[partition] - first;
  const uint8_t* verified = verified_[partition].load(std::memory_order_acquire);
  if (verified != nullptr) return Codes{verified, count, first};
  TableValue value;
  SF_ASSIGN_OR_RETURN(value, Find(partition, buffer));
  const Bytes codes = value.bytes;
  if (codes.size != uint64_t{count} * code_bytes_) {
    return DamagedPartition(partition, "has " + std::to_string(codes.size) + " bytes, expected " + std::to_string(count) +
                                           " codes of " + std::to_string(code_bytes_));
  }
  if (entries_ < kEntries && codes.size > 0 && *std::max_element(codes.begin(), codes.end()) >= entries_) {
    return DamagedPartition(partition, "has a code that no codebook has");
  }
  if (value.in_place) verified_[partition].store(codes.data, std::memory_order_release);
  return Codes{codes.data, count, first};
}

}  // namespace searchforge
