// Kernels for x86-64 processors with AVX2.
#if defined(__x86_64__)

#include "kernels/kernels.h"
#include "kernels/kernels_generic.h"

namespace searchforge {
namespace {

__attribute__((target("avx2"))) void Distances(const float* tiles, size_t tile_count, size_t columns, size_t panel,
                                               const float* query, float* distances) {
  GenericDistances<Registers32>(tiles, tile_count, columns, panel, query, distances);
}

__attribute__((target("avx2"))) void Sums(const uint8_t* codes, size_t count, size_t blocks, const uint8_t* entries,
                                          uint32_t* sums) {
  GenericSums(codes, count, blocks, entries, sums);
}

__attribute__((target("avx2"))) void Range(const float* numbers, float* low, float* high) { GenericRange<Registers32>(numbers, low, high); }

__attribute__((target("avx2"))) void Levels(float* numbers, float low, float scale) { GenericLevels(numbers, low, scale); }

__attribute__((target("avx2"))) void ToBytes(const float* numbers, float low, float scale, uint8_t* bytes) {
  GenericBytes(numbers, low, scale, bytes);
}

}  // namespace

const Kernels kAvx2Kernels = {"avx2", Distances, Range, Levels, ToBytes, Sums};

}  // namespace searchforge

#endif  // __x86_64__
