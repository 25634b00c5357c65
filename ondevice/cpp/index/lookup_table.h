// The look-up table of a query: the distance between each block of the query and each entry of its codebook.
#ifndef SEARCHFORGE_LOOKUP_TABLE_H_
#define SEARCHFORGE_LOOKUP_TABLE_H_

#include <cstdint>
#include <vector>

#include "index/index_config.h"
#include "kernels/kernels.h"

namespace searchforge {

// Codebooks in the arrangement from which tables are made.
class Codebooks {
 public:
  explicit Codebooks(const IndexConfig& config);

  uint32_t blocks() const { return static_cast<uint32_t>(widths_.size()); }

 private:
  friend class LookupTable;

  std::vector<uint32_t> widths_;
  std::vector<float> tiles_;  // for each block in turn, kEntries rows as in tiles.h; the last entry fills up the rows
  LookupType type_;
};

// The table of one query. It has two forms: numbers that add up to a code's distance, equal to the Task Library's, and bytes
// that add up to a lower bound of it. Bytes fit the fastest cache; few codes are as near as their bound allows.
class LookupTable {
 public:
  explicit LookupTable(const Codebooks& codebooks);

  // Makes the table of a query [dim]. Returns false if its numbers are too large for scores.
  bool Fill(const Codebooks& codebooks, const Kernels& kernels, const float* query);

  // Returns the distance of a code [blocks].
  float Distance(const uint8_t* code) const;

  // Returns the largest sum of bytes of a code whose distance can be below `distance`.
  uint32_t SumBelow(float distance) const;

  // [blocks, 256].
  const uint8_t* bytes() const { return bytes_.data(); }

 private:
  bool Quantize(LookupType type, const Kernels& kernels);
  bool FillBytes(const Kernels& kernels);

  uint32_t blocks_;
  std::vector<float> numbers_;  // [blocks, 256]
  std::vector<uint8_t> bytes_;
  std::vector<float> lows_;  // the smallest number of each block
  float scale_ = 1, offset_ = 0;  // the distance of m summed numbers is scale * sum + m * offset
  double least_ = 0;              // the sum of the smallest number of each block
  double step_ = 1;               // a byte stands for this much, rounded down
  double slack_ = 0;              // bytes by which rounding may shift a sum
};

}  // namespace searchforge

#endif  // SEARCHFORGE_LOOKUP_TABLE_H_
