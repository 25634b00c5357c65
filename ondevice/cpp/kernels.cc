// Kernels for every processor (on arm64 their vectors are NEON's), and the choice of kernels at run time.
#include "kernels.h"

#include "kernels_generic.h"

namespace searchforge {
namespace {

void Distances(const float* tiles, size_t tile_count, size_t columns, size_t panel, const float* query, float* distances) {
  GenericDistances(tiles, tile_count, columns, panel, query, distances);
}

void Sums(const uint8_t* codes, size_t count, size_t blocks, const uint8_t* entries, uint32_t* sums) {
  GenericSums(codes, count, blocks, entries, sums);
}

void Range(const float* numbers, float* low, float* high) { GenericRange(numbers, low, high); }

void ToBytes(const float* numbers, float low, float scale, uint8_t* bytes) {
  GenericBytes(numbers, low, scale, bytes);
}

}  // namespace

const Kernels kPortableKernels = {"portable", Distances, Range, ToBytes, Sums};

const Kernels& ChosenKernels() {
#if defined(__x86_64__)
  static const Kernels& chosen = __builtin_cpu_supports("avx2") ? kAvx2Kernels : kPortableKernels;
  return chosen;
#else
  return kPortableKernels;
#endif
}

}  // namespace searchforge
