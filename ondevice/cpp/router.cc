// Routes a query: distances to all centroids, then the smallest of them in order.
#include "router.h"

#include <algorithm>
#include <cstring>

#include "tiles.h"

namespace searchforge {
namespace {

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
    : distances(TileCount(router.partitions_) * kTileRows), keys(router.partitions_) {}

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
  for (uint32_t partition = 0; partition < partitions_; ++partition) {
    keys[partition] = Key(scratch.distances[partition], partition);
  }
  const auto end = keys.begin() + count;
  if (count < partitions_) std::nth_element(keys.begin(), end - 1, keys.end());
  std::sort(keys.begin(), end);
  for (auto key = keys.begin(); key != end; ++key) *key &= UINT32_MAX;
  return keys.data();
}

}  // namespace searchforge
