// Kernels for every processor (on arm64 their vectors are NEON's), and the choice of kernels at run time.
#include "kernels/kernels.h"

#include "kernels/kernels_generic.h"

namespace searchforge {
namespace {

void Distances(const float* tiles, size_t tile_count, size_t columns, size_t panel, const float* query, float* distances) {
  GenericDistances<Registers16>(tiles, tile_count, columns, panel, query, distances);
}

void Sums(const uint8_t* codes, size_t count, size_t blocks, const uint8_t* entries, uint32_t* sums) {
  GenericSums(codes, count, blocks, entries, sums);
}

void Range(const float* numbers, float* low, float* high) { GenericRange<Registers16>(numbers, low, high); }

void Levels(float* numbers, float low, float scale) { GenericLevels(numbers, low, scale); }

void ToBytes(const float* numbers, float low, float scale, uint8_t* bytes) {
  GenericBytes(numbers, low, scale, bytes);
}

}  // namespace

const Kernels kPortableKernels = {"portable", Distances, Range, Levels, ToBytes, Sums};

std::vector<const Kernels*> SupportedKernels() {
  std::vector<const Kernels*> kernels = {&kPortableKernels};
#if defined(__x86_64__)
  if (__builtin_cpu_supports("avx2")) kernels.push_back(&kAvx2Kernels);
  if (__builtin_cpu_supports("avx512bw") && __builtin_cpu_supports("avx512vbmi")) kernels.push_back(&kAvx512Kernels);
#endif
  return kernels;
}

const Kernels& ChosenKernels() {
  static const Kernels& chosen = *SupportedKernels().back();
  return chosen;
}

}  // namespace searchforge
