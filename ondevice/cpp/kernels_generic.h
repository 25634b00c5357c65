// Bodies of the kernels in the compiler's portable vectors, to be inlined into functions for one instruction set each.
#ifndef SEARCHFORGE_KERNELS_GENERIC_H_
#define SEARCHFORGE_KERNELS_GENERIC_H_

#include <cstring>

#include "kernels.h"

#define SF_INLINE inline __attribute__((always_inline))

namespace searchforge {

// Eight numbers, which the compiler keeps in as many registers as the instruction set needs.
typedef float Vector8 __attribute__((vector_size(32), aligned(4), may_alias));

inline constexpr size_t kVectors = kTileRows / 8;

SF_INLINE void GenericDistances(const float* tiles, size_t tile_count, size_t columns, size_t panel, const float* query,
                                float* distances) {
  for (size_t tile = 0; tile < tile_count; ++tile, tiles += columns * kTileRows, distances += kTileRows) {
    Vector8 total[kVectors] = {};
    for (size_t start = 0; start < columns; start += panel) {
      const size_t end = columns - start < panel ? columns : start + panel;
      Vector8 sum[kVectors] = {};
      for (size_t column = start; column < end; ++column) {
        const Vector8* rows = reinterpret_cast<const Vector8*>(tiles + column * kTileRows);
        for (size_t i = 0; i < kVectors; ++i) sum[i] += rows[i] * query[column];
      }
      for (size_t i = 0; i < kVectors; ++i) total[i] -= sum[i];
    }
    std::memcpy(distances, total, sizeof(total));
  }
}

SF_INLINE void GenericRange(const float* numbers, float* low, float* high) {
  const Vector8* vectors = reinterpret_cast<const Vector8*>(numbers);
  Vector8 least = vectors[0], most = vectors[0];
  for (size_t i = 1; i < 256 / 8; ++i) {
    least = vectors[i] < least ? vectors[i] : least;
    most = vectors[i] > most ? vectors[i] : most;
  }
  *low = least[0];
  *high = most[0];
  for (size_t i = 1; i < 8; ++i) {
    *low = least[i] < *low ? least[i] : *low;
    *high = most[i] > *high ? most[i] : *high;
  }
}

SF_INLINE void GenericBytes(const float* numbers, float low, float scale, uint8_t* bytes) {
  for (size_t i = 0; i < 256; ++i) {
    const float byte = (numbers[i] - low) * scale;
    bytes[i] = static_cast<uint8_t>(static_cast<int32_t>(byte < 255.0f ? byte : 255.0f));
  }
}

// Four codes at once hide the latency of the additions.
SF_INLINE void GenericSums(const uint8_t* codes, size_t count, size_t blocks, const uint8_t* entries, uint32_t* sums) {
  for (size_t item = 0; item < count; item += 4) {
    const uint8_t* code[4];
    for (size_t i = 0; i < 4; ++i) code[i] = codes + (item + i < count ? item + i : count - 1) * blocks;
    uint32_t sum[4] = {};
    const uint8_t* table = entries;
    for (size_t block = 0; block < blocks; ++block, table += 256) {
      for (size_t i = 0; i < 4; ++i) sum[i] += table[code[i][block]];
    }
    for (size_t i = 0; i < 4 && item + i < count; ++i) sums[item + i] = sum[i];
  }
}

}  // namespace searchforge

#endif  // SEARCHFORGE_KERNELS_GENERIC_H_
