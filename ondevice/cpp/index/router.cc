// Routes a query: distances to all centroids, then the smallest of them in order.
#include "index/router.h"

#include <algorithm>
#include <cstring>

#include "kernels/tiles.h"

namespace searchforge {
namespace {

// Number of partitions whose smallest distance is looked at first.
constexpr uint32_t kGroup = 16;

// Returns a number that orders as the distance, then as the partition.
uint64_t Key(float distance, uint32_t partition) {
  uint32_t bits;
  distance += 0.0f;  // negative zero equals zero
  std::memcpy(&bits, &distance, sizeof(bits));
  bits ^= (bits >> 31) != 0 ? ~0u : 1u << 31;
  return (static_cast<uint64_t>(bits) << 32) | partition;
}

}  // namespace

Router::Scratch::Scratch(const Router& router)
    : distances(TileCount(router.partitions_) * kTileRows), keys(router.partitions_), least(router.partitions_ / kGroup) {}

Router::Router(const IndexConfig& config)
    : partitions_(config.partitions),
      dim_(config.dim),
      tiles_(TileCount(config.partitions) * kTileRows * static_cast<size_t>(config.dim)) {
  for (size_t row = 0; row < partitions_; ++row) WriteRow(&config.centroids[row * dim_], row, dim_, tiles_.data());
}

const uint64_t* Router::Route(const Kernels& kernels, const float* query, uint32_t count, Scratch& scratch) const {
  kernels.distances(tiles_.data(), TileCount(partitions_), dim_, PanelColumns(partitions_, dim_), query,
                    scratch.distances.data());
  std::vector<uint64_t>& keys = scratch.keys;
  uint32_t candidates = Candidates(count, scratch);
  if (candidates < count) {  // too few groups, or a distance that is not a number
    for (candidates = 0; candidates < partitions_; ++candidates) {
      keys[candidates] = Key(scratch.distances[candidates], candidates);
    }
  }
  const auto end = keys.begin() + count;
  if (count < candidates) std::nth_element(keys.begin(), end - 1, keys.begin() + candidates);
  std::sort(keys.begin(), end);
  for (auto key = keys.begin(); key != end; ++key) *key &= UINT32_MAX;
  return keys.data();
}

// Writes the keys of all partitions that may be among the nearest `count`, and returns their number. As many groups of
// partitions as are wanted have a distance up to some limit, so none beyond the limit is among the nearest.
uint32_t Router::Candidates(uint32_t count, Scratch& scratch) const {
  const uint32_t groups = partitions_ / kGroup;
  if (count > groups) return 0;
  std::vector<float>& least = scratch.least;
  for (uint32_t group = 0; group < groups; ++group) {
    const float* distances = &scratch.distances[group * size_t{kGroup}];
    least[group] = *std::min_element(distances, distances + kGroup);
  }
  std::nth_element(least.begin(), least.begin() + (count - 1), least.end());
  const float limit = least[count - 1];
  uint32_t candidates = 0;
  for (uint32_t partition = 0; partition < partitions_; ++partition) {
    if (scratch.distances[partition] <= limit) scratch.keys[candidates++] = Key(scratch.distances[partition], partition);
  }
  return candidates;
}

}  // namespace searchforge
