// Parses damaged preprocessing strings, and resizes images of random sizes to what they say: an image of one colour keeps it.
//
//   images COUNT SEED
#include <algorithm>
#include <random>

#include "program.h"

namespace {

constexpr uint32_t kLargest = 300;  // height and width of an image

// Returns a height or a width.
uint32_t Side(std::mt19937* generator, uint32_t most) { return static_cast<uint32_t>(1 + (*generator)() % most); }

// Returns a valid string with some of its characters replaced, removed or repeated.
std::string RandomString(std::mt19937* generator) {
  static const std::string kStrings[] = {
      "decode|resize(24,32,bilinear)|scale(-1,1)",
      "decode|resize(1,57,bicubic)|scale([-2.1,-2.03,-1.8],[2.24,2.42,2.64])",
      "decode|resize(224,224,bilinear)|scale(0,255)",
  };
  std::string text = kStrings[(*generator)() % 3];
  for (size_t changes = (*generator)() % 3; changes > 0; --changes) {
    const size_t position = (*generator)() % text.size();
    switch ((*generator)() % 4) {
      case 0: text[position] = static_cast<char>(1 + (*generator)() % 255); break;
      case 1: text[position] = static_cast<char>('0' + (*generator)() % 10); break;
      case 2: text.erase(position, 1 + (*generator)() % 4); break;
      default: text.insert(position, text.substr(position, 1 + (*generator)() % 12));
    }
    if (text.empty()) break;
  }
  return text;
}

void Resize(const sf_preprocessing& preprocessing, std::mt19937* generator) {
  const uint32_t width = Side(generator, kLargest), height = Side(generator, kLargest);
  const size_t stride = size_t{3} * width + (*generator)() % 5, size = size_t{3} * preprocessing.height * preprocessing.width;
  const auto colour = static_cast<uint8_t>((*generator)());
  const std::vector<uint8_t> pixels(stride * (height - 1) + size_t{3} * width, colour);
  std::vector<uint8_t> resized(size);
  std::vector<float> tensor(size);
  REQUIRE(sf_resize_image(&preprocessing, pixels.data(), width, height, stride, resized.data()) == SF_OK, "%s", sf_error_message());
  REQUIRE(sf_preprocess_image(&preprocessing, pixels.data(), width, height, stride, tensor.data()) == SF_OK, "%s",
          sf_error_message());
  for (const uint8_t value : resized) REQUIRE(value == colour, "%d of %d", value, colour);
  for (size_t i = 0; i < size; ++i) {
    REQUIRE(tensor[i] == (colour - preprocessing.mean[i % 3]) / preprocessing.std[i % 3], "%g of %d", tensor[i], colour);
  }
}

// Resizes noise with the filter whose weights may be negative, where sums are largest.
void ResizeExtremes(std::mt19937* generator) {
  sf_preprocessing preprocessing{Side(generator, 99), Side(generator, 99), SF_FILTER_BICUBIC, {0, 0, 0}, {1, 1, 1}};
  const uint32_t width = Side(generator, kLargest), height = Side(generator, kLargest);
  std::vector<uint8_t> pixels(size_t{3} * width * height), resized(size_t{3} * preprocessing.height * preprocessing.width);
  for (uint8_t& value : pixels) value = (*generator)() % 2 == 0 ? 0 : 255;
  REQUIRE(sf_resize_image(&preprocessing, pixels.data(), width, height, size_t{3} * width, resized.data()) == SF_OK, "%s",
          sf_error_message());
}

}  // namespace

int main(int count, char** arguments) {
  REQUIRE(count == 3, "usage: images COUNT SEED");
  std::mt19937 generator(static_cast<uint32_t>(std::atoi(arguments[2])));
  int parsed = 0;
  for (int i = 0; i < std::atoi(arguments[1]); ++i) {
    const std::string text = RandomString(&generator);
    sf_preprocessing preprocessing;
    if (sf_parse_preprocessing(text.c_str(), &preprocessing) != SF_OK) continue;
    ++parsed;
    // Larger inputs take long without testing more.
    if (std::max(preprocessing.height, preprocessing.width) <= kLargest) Resize(preprocessing, &generator);
    ResizeExtremes(&generator);
  }
  REQUIRE(parsed > 0 && parsed < std::atoi(arguments[1]), "%d strings are valid", parsed);
  sf_preprocessing none{0, 8, SF_FILTER_BILINEAR, {0, 0, 0}, {1, 1, 1}}, unknown{8, 8, 2, {0, 0, 0}, {1, 1, 1}};
  const uint8_t pixel[3] = {1, 2, 3};
  uint8_t resized[192];
  REQUIRE(sf_resize_image(&none, pixel, 1, 1, 3, resized) == SF_INVALID_ARGUMENT, "no height");
  REQUIRE(sf_resize_image(&unknown, pixel, 1, 1, 3, resized) == SF_INVALID_ARGUMENT, "no such filter");
  return 0;
}
