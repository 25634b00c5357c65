// Bodies of the kernels in the compiler's portable vectors, to be inlined into functions for one instruction set each.
#ifndef SEARCHFORGE_KERNELS_GENERIC_H_
#define SEARCHFORGE_KERNELS_GENERIC_H_

#include <cstring>

#include "kernels/kernels.h"

#define SF_INLINE inline __attribute__((always_inline))

namespace searchforge {

// Numbers in a register of 16 or 32 bytes, at any address of a number. Inside structures, because a template drops the
// attributes of a vector that is its argument.
struct Registers16 {
  typedef float Vector __attribute__((vector_size(16), aligned(4), may_alias));
};
struct Registers32 {
  typedef float Vector __attribute__((vector_size(32), aligned(4), may_alias));
};

// Eight registers of sums at once hide the latency of the additions.
template <typename Registers>
SF_INLINE void GenericDistances(const float* tiles, size_t tile_count, size_t columns, size_t panel, const float* query,
                                float* distances) {
  using Vector = typename Registers::Vector;
  constexpr size_t kSums = 8, kRows = kSums * sizeof(Vector) / sizeof(float);
  for (size_t tile = 0; tile < tile_count; ++tile, tiles += columns * kTileRows) {
    for (size_t row = 0; row < kTileRows; row += kRows, distances += kRows) {
      Vector total[kSums] = {};
      for (size_t start = 0; start < columns; start += panel) {
        const size_t end = columns - start < panel ? columns : start + panel;
        Vector sum[kSums] = {};
        for (size_t column = start; column < end; ++column) {
          const Vector* rows = reinterpret_cast<const Vector*>(tiles + column * kTileRows + row);
          for (size_t i = 0; i < kSums; ++i) sum[i] += rows[i] * query[column];
        }
        for (size_t i = 0; i < kSums; ++i) total[i] -= sum[i];
      }
      std::memcpy(distances, total, sizeof(total));
    }
  }
}

template <typename Registers>
SF_INLINE void GenericRange(const float* numbers, float* low, float* high) {
  using Vector = typename Registers::Vector;
  constexpr size_t kParts = 4, kLanes = sizeof(Vector) / sizeof(float);
  const Vector* vectors = reinterpret_cast<const Vector*>(numbers);
  Vector least[kParts], most[kParts];
  for (size_t part = 0; part < kParts; ++part) least[part] = most[part] = vectors[part];
  for (size_t i = kParts; i < 256 / kLanes; i += kParts) {
    for (size_t part = 0; part < kParts; ++part) {
      const Vector vector = vectors[i + part];
      least[part] = vector < least[part] ? vector : least[part];
      most[part] = vector > most[part] ? vector : most[part];
    }
  }
  for (size_t part = 1; part < kParts; ++part) {
    least[0] = least[part] < least[0] ? least[part] : least[0];
    most[0] = most[part] > most[0] ? most[part] : most[0];
  }
  *low = least[0][0];
  *high = most[0][0];
  for (size_t i = 1; i < kLanes; ++i) {
    *low = least[0][i] < *low ? least[0][i] : *low;
    *high = most[0][i] > *high ? most[0][i] : *high;
  }
}

SF_INLINE void GenericLevels(float* numbers, float low, float scale) {
  for (size_t i = 0; i < 256; ++i) numbers[i] = static_cast<float>(static_cast<int32_t>((numbers[i] - low) * scale));
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
