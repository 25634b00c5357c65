// Compares the kernels of every instruction set that this processor has with the portable ones, which must be equal bit by bit.
#include "kernels/kernels.h"

#include <algorithm>
#include <cstring>
#include <random>

#include "program.h"

namespace {

using searchforge::Kernels;
using searchforge::kPortableKernels;
using searchforge::kScanned;
using searchforge::kTileRows;

std::mt19937 random_bits(1);

std::vector<float> Numbers(size_t count) {
  std::normal_distribution<float> normal;
  std::vector<float> numbers(count);
  for (float& number : numbers) number = normal(random_bits);
  return numbers;
}

std::vector<uint8_t> RandomBytes(size_t count) {
  std::vector<uint8_t> bytes(count);
  for (uint8_t& byte : bytes) byte = static_cast<uint8_t>(random_bits());
  return bytes;
}

template <typename T>
void RequireEqual(const std::vector<T>& found, const std::vector<T>& expected, const Kernels& kernels, const char* what) {
  REQUIRE(std::memcmp(found.data(), expected.data(), found.size() * sizeof(T)) == 0, "%s of %s", what, kernels.name);
}

void CompareDistances(const Kernels& kernels) {
  for (const size_t columns : {1, 2, 3, 16, 127, 129}) {
    const std::vector<float> tiles = Numbers(3 * kTileRows * columns), query = Numbers(columns);
    for (const size_t panel : {size_t{4}, size_t{16}, columns}) {
      std::vector<float> found(3 * kTileRows), expected(3 * kTileRows);
      kernels.distances(tiles.data(), 3, columns, panel, query.data(), found.data());
      kPortableKernels.distances(tiles.data(), 3, columns, panel, query.data(), expected.data());
      RequireEqual(found, expected, kernels, "distances");
    }
  }
}

void CompareTables(const Kernels& kernels) {
  const std::vector<float> numbers = Numbers(256);
  float low, high;
  kernels.range(numbers.data(), &low, &high);
  REQUIRE(low == *std::min_element(numbers.begin(), numbers.end()), "low of %s", kernels.name);
  REQUIRE(high == *std::max_element(numbers.begin(), numbers.end()), "high of %s", kernels.name);
  std::vector<float> found = numbers, expected = numbers;
  kernels.levels(found.data(), low, 300);
  kPortableKernels.levels(expected.data(), low, 300);
  RequireEqual(found, expected, kernels, "levels");
  std::vector<uint8_t> bytes(256), expected_bytes(256);
  kernels.bytes(numbers.data(), low, 255 / (high - low), bytes.data());
  kPortableKernels.bytes(numbers.data(), low, 255 / (high - low), expected_bytes.data());
  RequireEqual(bytes, expected_bytes, kernels, "bytes");
}

void CompareSums(const Kernels& kernels) {
  for (const size_t blocks : {1, 7, 8, 63, 64, 65, 96, 128, 255, 256, 257, 300}) {
    const std::vector<uint8_t> entries = RandomBytes(blocks * 256);
    for (const size_t count : {size_t{1}, size_t{5}, size_t{8}, size_t{63}, size_t{kScanned}}) {
      const std::vector<uint8_t> codes = RandomBytes(blocks * count);
      std::vector<uint32_t> found(count), expected(count, 0);
      kernels.sums(codes.data(), count, blocks, entries.data(), found.data());
      for (size_t item = 0; item < count; ++item) {
        for (size_t block = 0; block < blocks; ++block) expected[item] += entries[block * 256 + codes[item * blocks + block]];
      }
      RequireEqual(found, expected, kernels, "sums");
    }
  }
  const std::vector<uint8_t> most(256 * 256, 255), codes(256 * kScanned, 255);
  std::vector<uint32_t> found(kScanned), expected(kScanned, 256 * 255);
  kernels.sums(codes.data(), kScanned, 256, most.data(), found.data());
  RequireEqual(found, expected, kernels, "largest sums");
}

}  // namespace

int main() {
  for (const Kernels* kernels : searchforge::SupportedKernels()) {
    CompareDistances(*kernels);
    CompareTables(*kernels);
    CompareSums(*kernels);
    std::printf("%s\n", kernels->name);
  }
  return 0;
}
