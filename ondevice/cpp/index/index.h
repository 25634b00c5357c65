// An open index: searches it, and reads the metadata of its items.
#ifndef SEARCHFORGE_INDEX_H_
#define SEARCHFORGE_INDEX_H_

#include <cstdint>
#include <memory>
#include <mutex>
#include <string>
#include <vector>

#include "index/index_config.h"
#include "kernels/kernels.h"
#include "index/lookup_table.h"
#include "model/model_file.h"
#include "index/partitions.h"
#include "index/router.h"
#include "searchforge_reader.h"
#include "model/source.h"
#include "base/status.h"
#include "table/table.h"
#include "index/top_hits.h"

namespace searchforge {

// Numbers that describe an index.
struct IndexShape {
  uint32_t items, dim, partitions, partitions_searched, code_bytes;
  LookupType lookup_type;
};

// All functions may be called from several threads at once. Memory of queries is kept and used again: once as many queries
// have run at the same time as ever will, with the greatest k, queries allocate nothing.
class Index {
 public:
  static Result<std::unique_ptr<Index>> Open(std::unique_ptr<Source> source);
  ~Index();

  const IndexShape& shape() const { return shape_; }
  const std::string& user_info() const { return user_info_; }
  const std::vector<ArchivedFile>& files() const { return model_.files; }
  const Source& source() const { return *source_; }

  // sf_search.
  Status Search(const float* query, size_t dim, size_t k, uint32_t partitions, sf_hit* hits, size_t* found) const;

  // Copies the first `capacity` bytes of an item's metadata to `target` and writes the length of all of it to `length`.
  Status Metadata(uint32_t item, uint8_t* target, size_t capacity, size_t* length) const;

  // Reads the whole index and verifies every checksum, every code, and that every item has metadata.
  Status Verify() const;

 private:
  struct Scratch;
  class Lease;

  Index(std::unique_ptr<Source> source, ModelFile model, Table table);

  Status Load();
  void Scan(const Codes& codes, Scratch& scratch) const;

  std::unique_ptr<Source> source_;
  ModelFile model_;
  Table table_;
  IndexShape shape_{};
  std::string user_info_;
  std::unique_ptr<Router> router_;
  std::unique_ptr<Codebooks> codebooks_;
  std::unique_ptr<Partitions> partitions_;
  const Kernels& kernels_;
  mutable std::mutex mutex_;
  mutable std::vector<std::unique_ptr<Scratch>> idle_;  // guarded by mutex_
  mutable size_t leased_ = 0;                           // number of scratches made; guarded by mutex_
};

}  // namespace searchforge

#endif  // SEARCHFORGE_INDEX_H_
