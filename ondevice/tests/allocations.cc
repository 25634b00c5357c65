// Searches a file again and again, and counts the allocations once memory has been warmed up: there must be none.
//
//   allocations FILE

#include "counted_allocations.h"
#include "program.h"

namespace {

constexpr size_t kMost = 20;

// Runs queries of all sizes, with the metadata of their hits, and returns the number of allocations.
long Query(const sf_index* index, const float* query, const sf_shape& shape) {
  const long before = allocations;
  for (size_t k = 1; k <= kMost; ++k) {
    for (uint32_t partitions = 0; partitions <= shape.partitions; ++partitions) {
      sf_hit hits[kMost];
      size_t found, length;
      char text[64];
      REQUIRE(sf_search(index, query, shape.dim, k, partitions, hits, &found) == SF_OK, "%s", sf_error_message());
      for (size_t i = 0; i < found; ++i) {
        REQUIRE(sf_metadata(index, hits[i].item, text, sizeof(text), &length) == SF_OK, "%s", sf_error_message());
      }
    }
  }
  return allocations - before;
}

}  // namespace

int main(int count, char** arguments) {
  REQUIRE(count == 2, "usage: allocations FILE");
  sf_index* index;
  REQUIRE(sf_open_path(arguments[1], &index) == SF_OK, "%s", sf_error_message());
  const sf_shape shape = sf_get_shape(index);
  const std::vector<float> query(shape.dim, 0.5f);
  const long cold = Query(index, query.data(), shape), warm = Query(index, query.data(), shape);
  REQUIRE(cold > 0, "nothing was counted");
  REQUIRE(warm == 0, "%ld allocations by warm queries", warm);
  sf_close(index);
  return 0;
}
