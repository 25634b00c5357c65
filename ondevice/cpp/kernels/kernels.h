// The loops that take a query's time, compiled for several instruction sets. All of them give the same results, bit by bit.
#ifndef SEARCHFORGE_KERNELS_H_
#define SEARCHFORGE_KERNELS_H_

#include <cstddef>
#include <cstdint>
#include <vector>

namespace searchforge {

// Number of rows of a tile: a matrix [rows, columns] is stored as [tiles, columns, kTileRows], with zeros below the last row.
inline constexpr uint32_t kTileRows = 64;

// Number of codes whose bounds are computed at once.
inline constexpr uint32_t kScanned = 64;

struct Kernels {
  const char* name;

  // Writes `distances` [tiles * kTileRows], the negated dot products of a matrix's rows with `query` [columns]. Products are
  // summed in panels of `panel` columns, without fused multiply-add, in the order in which the Task Library sums them.
  void (*distances)(const float* tiles, size_t tile_count, size_t columns, size_t panel, const float* query, float* distances);

  // Writes the smallest and the largest of 256 numbers.
  void (*range)(const float* numbers, float* low, float* high);

  // Replaces 256 numbers that are at least `low` by the whole part of (number - low) * scale.
  void (*levels)(float* numbers, float low, float scale);

  // Writes `bytes` [256]: the whole part of (number - low) * scale, at most 255, for 256 numbers that are at least `low`.
  void (*bytes)(const float* numbers, float low, float scale, uint8_t* bytes);

  // Writes `sums` [count], count <= kScanned: for each code [blocks], the sum of the entries [blocks, 256] that it selects.
  void (*sums)(const uint8_t* codes, size_t count, size_t blocks, const uint8_t* entries, uint32_t* sums);
};

extern const Kernels kPortableKernels;
extern const Kernels kAvx2Kernels;    // on x86-64 only
extern const Kernels kAvx512Kernels;  // on x86-64 only

// Returns the kernels that this processor runs, the fastest last.
std::vector<const Kernels*> SupportedKernels();

// Returns the fastest of them.
const Kernels& ChosenKernels();

}  // namespace searchforge

#endif  // SEARCHFORGE_KERNELS_H_
