// The codes of each partition, read from the table when a query first needs them.
#ifndef SEARCHFORGE_PARTITIONS_H_
#define SEARCHFORGE_PARTITIONS_H_

#include <atomic>
#include <cstdint>
#include <memory>
#include <vector>

#include "index/index_config.h"
#include "base/status.h"
#include "table/table.h"

namespace searchforge {

// The codes of one partition.
struct Codes {
  const uint8_t* data = nullptr;  // [count, bytes of a code]
  uint32_t count = 0;
  uint32_t first = 0;  // number of the first item
};

// May be used by several threads at once, each with a buffer of its own.
class Partitions {
 public:
  // The table must outlive the partitions.
  static Result<std::unique_ptr<Partitions>> Open(const Table& table, const IndexConfig& config);

  // Number of items.
  uint32_t items() const { return ends_.back(); }

  // Begins to load the codes of a partition into the caches, if they are used in place.
  void Prefetch(uint32_t partition) const;

  // Returns the codes of a partition, valid as long as `buffer` is unchanged. The first time, their checksum is verified,
  // and that every code is an entry of its codebook. Codes that lie in the source's memory are then used in place.
  Result<Codes> Read(uint32_t partition, TableBuffer& buffer) const;

 private:
  Partitions(const Table& table, const IndexConfig& config);

  Result<TableValue> Find(uint32_t partition, TableBuffer& buffer) const;

  const Table& table_;
  uint32_t code_bytes_;
  uint32_t entries_;
  std::vector<uint32_t> starts_, ends_;  // first item of each partition, and the item after its last
  std::unique_ptr<std::atomic<const uint8_t*>[]> verified_;  // codes that are used in place
};

}  // namespace searchforge

#endif  // SEARCHFORGE_PARTITIONS_H_
