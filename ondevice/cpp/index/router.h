// Chooses the partitions that a query searches: those with the nearest centroids.
#ifndef SEARCHFORGE_ROUTER_H_
#define SEARCHFORGE_ROUTER_H_

#include <cstdint>
#include <vector>

#include "index/index_config.h"
#include "kernels/kernels.h"

namespace searchforge {

class Router {
 public:
  // Memory of one query.
  struct Scratch {
    explicit Scratch(const Router& router);
    std::vector<float> distances;
    std::vector<uint64_t> keys;
    std::vector<float> least;
  };

  explicit Router(const IndexConfig& config);

  // Returns the `count` partitions, 1 to all, of which the centroid has the largest dot product with the query, nearest
  // first; of equal ones, the smaller number. The numbers lie in the scratch.
  const uint64_t* Route(const Kernels& kernels, const float* query, uint32_t count, Scratch& scratch) const;

 private:
  uint32_t Candidates(uint32_t count, Scratch& scratch) const;

  uint32_t partitions_;
  uint32_t dim_;
  std::vector<float> tiles_;
};

}  // namespace searchforge

#endif  // SEARCHFORGE_ROUTER_H_
