// What the test programs share: reading a file, and one query's answer through the C interface.
#ifndef SEARCHFORGE_TESTS_PROGRAM_H_
#define SEARCHFORGE_TESTS_PROGRAM_H_

#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <fstream>
#include <iterator>
#include <string>
#include <vector>

#include "searchforge_reader.h"

// Ends the program with a message unless `condition` holds.
#define REQUIRE(condition, ...)                                              \
  do {                                                                       \
    if (!(condition)) {                                                      \
      std::fprintf(stderr, "%s:%d: %s\n", __FILE__, __LINE__, #condition);   \
      std::fprintf(stderr, __VA_ARGS__);                                     \
      std::fprintf(stderr, "\n");                                            \
      std::exit(1);                                                          \
    }                                                                        \
  } while (false)

using FileBytes = std::vector<uint8_t>;

inline FileBytes ReadWholeFile(const char* path) {
  std::ifstream file(path, std::ios::binary);
  REQUIRE(file, "%s cannot be read", path);
  return FileBytes(std::istreambuf_iterator<char>(file), {});
}

// The hits of one query, with their metadata.
struct Answer {
  std::vector<uint32_t> items;
  std::vector<float> scores;
  std::vector<std::string> metadata;

  bool operator==(const Answer& other) const {
    return items == other.items && scores == other.scores && metadata == other.metadata;
  }
};

constexpr size_t kHits = 5;

// Asks an open index a fixed query. Returns the status of the first call that failed.
inline sf_status Ask(const sf_index* index, uint32_t partitions, Answer* answer) {
  const sf_shape shape = sf_get_shape(index);
  std::vector<float> query(shape.dim);
  for (size_t i = 0; i < query.size(); ++i) query[i] = static_cast<float>(i % 7) - 2.5f;
  sf_hit hits[kHits];
  size_t found;
  const sf_status status = sf_search(index, query.data(), query.size(), kHits, partitions, hits, &found);
  if (status != SF_OK) return status;
  for (size_t i = 0; i < found; ++i) {
    char text[64];
    size_t length;
    const sf_status read = sf_metadata(index, hits[i].item, text, sizeof(text), &length);
    if (read != SF_OK) return read;
    answer->items.push_back(hits[i].item);
    answer->scores.push_back(hits[i].score);
    answer->metadata.emplace_back(text, length < sizeof(text) ? length : sizeof(text));
  }
  return SF_OK;
}

#endif  // SEARCHFORGE_TESTS_PROGRAM_H_
