// The configuration of an index: centroids of the partitions, codebooks, and how to search them.
#ifndef SEARCHFORGE_INDEX_CONFIG_H_
#define SEARCHFORGE_INDEX_CONFIG_H_

#include <cstdint>
#include <vector>

#include "base/bytes.h"
#include "base/status.h"

namespace searchforge {

// Number of entries for which a look-up table has room: a code is a byte.
inline constexpr uint32_t kEntries = 256;

// Element type of the look-up tables, which decides how scores are rounded.
enum class LookupType { kFloat = 0, kInt16 = 1, kInt8 = 2 };

struct IndexConfig {
  uint32_t dim = 0;
  uint32_t partitions = 0;
  uint32_t blocks = 0;                      // bytes of a code
  uint32_t entries = 0;                     // of every codebook, at most kEntries
  std::vector<float> centroids;             // [partitions, dim]
  std::vector<uint32_t> widths;             // dimensions of each block; they add up to dim
  std::vector<float> codebooks;             // for each block in turn, [entries, width]
  std::vector<uint32_t> partition_offsets;  // number of the first item of each partition, ascending from 0
  LookupType lookup_type = LookupType::kFloat;
  float search_fraction = 0;                // share of the partitions that a query searches

  // Number of partitions that a query searches by default.
  uint32_t partitions_searched() const;
};

// Reads the message IndexConfig (tensorflow_lite_support/scann_ondevice/proto/index_config.proto).
Result<IndexConfig> ParseIndexConfig(Bytes message);

}  // namespace searchforge

#endif  // SEARCHFORGE_INDEX_CONFIG_H_
