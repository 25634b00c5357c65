// Image preprocessing, described by one string such as `decode|resize(224,224,bilinear)|scale(-1,1)`.
#ifndef SEARCHFORGE_PREPROCESSING_H_
#define SEARCHFORGE_PREPROCESSING_H_

#include <array>
#include <cstddef>
#include <cstdint>
#include <string_view>

#include "base/status.h"

namespace searchforge {

// The values are those of `sf_filter` in searchforge_reader.h.
enum class Filter { kBilinear = 0, kBicubic = 1 };

// Largest height or width that an encoder's input may have. It bounds what a string in a file can make this library allocate.
constexpr uint32_t kMaxInputSide = 4096;

struct Preprocessing {
  uint32_t height, width;  // of the encoder's input
  Filter filter;
  std::array<float, 3> mean, std;  // of red, green and blue: the input is (value - mean) / std
};

Result<Preprocessing> ParsePreprocessing(std::string_view text);

// Scales pixels, [height, width, 3], to the encoder's input, of the same shape.
void Scale(const Preprocessing& preprocessing, const uint8_t* pixels, float* target);

}  // namespace searchforge

#endif  // SEARCHFORGE_PREPROCESSING_H_
