// Resizes by convolution with a filter that is as wide as an output pixel, or an input pixel if that is wider: first every row,
// then every column; of images more than 100 times as high as wide, whose rows would become many, first every column. Weights are
// integers of 22 fractional bits, and the result of each step is rounded to 8 bits.
#include "image/resize.h"

#include <algorithm>
#include <cmath>
#include <string>
#include <vector>

namespace searchforge {
namespace {

constexpr size_t kChannels = 3;
constexpr int kFractionBits = 22;
constexpr int32_t kHalf = 1 << (kFractionBits - 1);

double Triangle(double x) { return std::max(0.0, 1 - std::abs(x)); }

// Keys (1981), "Cubic convolution interpolation for digital image processing", with a = -1/2.
double Cubic(double x) {
  constexpr double a = -0.5;
  x = std::abs(x);
  if (x < 1) return ((a + 2) * x - (a + 3)) * x * x + 1;
  return x < 2 ? (((x - 5) * x + 8) * x - 4) * a : 0;
}

// The input pixels, along one dimension, that make up an output pixel.
struct Window {
  size_t start, count;
  size_t weights;  // where their weights begin
};

struct Weights {
  std::vector<Window> windows;  // of each output pixel
  std::vector<int32_t> values;
};

int32_t Rounded(double weight) {
  weight *= 1 << kFractionBits;
  return static_cast<int32_t>(weight + (weight < 0 ? -0.5 : 0.5));
}

Weights MakeWeights(size_t from, size_t to, Filter filter) {
  const double step = static_cast<double>(from) / static_cast<double>(to), width = std::max(step, 1.0);
  const double support = (filter == Filter::kBicubic ? 2 : 1) * width;
  Weights result;
  result.windows.reserve(to);
  std::vector<double> window;
  for (size_t i = 0; i < to; ++i) {
    const double center = (static_cast<double>(i) + 0.5) * step;
    const auto start = static_cast<size_t>(std::max(center - support + 0.5, 0.0));
    const size_t end = std::min(static_cast<size_t>(center + support + 0.5), from);
    window.clear();
    double sum = 0;
    for (size_t pixel = start; pixel < end; ++pixel) {
      const double position = (static_cast<double>(pixel) - center + 0.5) * (1 / width);
      window.push_back(filter == Filter::kBicubic ? Cubic(position) : Triangle(position));
      sum += window.back();
    }
    result.windows.push_back({start, end - start, result.values.size()});
    for (const double weight : window) result.values.push_back(Rounded(weight / sum));
  }
  return result;
}

uint8_t Pixel(int32_t sum) { return static_cast<uint8_t>(std::clamp(sum >> kFractionBits, 0, 255)); }

// Resizes every row of an image.
void ResizeRows(const Image& image, const Weights& weights, uint8_t* target) {
  for (size_t y = 0; y < image.height; ++y) {
    const uint8_t* row = image.pixels + y * image.stride;
    for (const Window& window : weights.windows) {
      int32_t sums[kChannels] = {kHalf, kHalf, kHalf};
      const uint8_t* pixel = row + window.start * kChannels;
      for (size_t i = 0; i < window.count; ++i, pixel += kChannels) {
        const int32_t weight = weights.values[window.weights + i];
        for (size_t channel = 0; channel < kChannels; ++channel) sums[channel] += weight * pixel[channel];
      }
      for (const int32_t sum : sums) *target++ = Pixel(sum);
    }
  }
}

// Resizes every column of an image.
void ResizeColumns(const Image& image, const Weights& weights, uint8_t* target) {
  std::vector<int32_t> sums(size_t{image.width} * kChannels);
  for (const Window& window : weights.windows) {
    std::fill(sums.begin(), sums.end(), kHalf);
    for (size_t i = 0; i < window.count; ++i) {
      const int32_t weight = weights.values[window.weights + i];
      const uint8_t* row = image.pixels + (window.start + i) * image.stride;
      for (size_t x = 0; x < sums.size(); ++x) sums[x] += weight * row[x];
    }
    target = std::transform(sums.begin(), sums.end(), target, Pixel);
  }
}

}  // namespace

Status Resize(const Image& image, const Preprocessing& preprocessing, uint8_t* target) {
  if (image.width == 0 || image.height == 0 || image.stride / kChannels < image.width) {
    return InvalidArgument("an image of " + std::to_string(image.width) + " x " + std::to_string(image.height) +
                           " pixels with rows of " + std::to_string(image.stride) +
                           " bytes; expected at least one pixel, and rows of 3 bytes a pixel");
  }
  const uint32_t width = preprocessing.width, height = preprocessing.height;
  Image resized = image;
  std::vector<uint8_t> rows, columns;
  const auto resize_rows = [&] {
    if (resized.width == width) return;
    rows.resize(size_t{resized.height} * width * kChannels);
    ResizeRows(resized, MakeWeights(resized.width, width, preprocessing.filter), rows.data());
    resized = {rows.data(), width, resized.height, size_t{width} * kChannels};
  };
  const auto resize_columns = [&] {
    if (resized.height == height) return;
    columns.resize(size_t{height} * resized.width * kChannels);
    ResizeColumns(resized, MakeWeights(resized.height, height, preprocessing.filter), columns.data());
    resized = {columns.data(), resized.width, height, size_t{resized.width} * kChannels};
  };
  const bool columns_first = image.height > uint64_t{100} * image.width && height < image.height;
  if (columns_first) resize_columns();
  resize_rows();
  resize_columns();
  for (size_t y = 0; y < height; ++y) {
    target = std::copy_n(resized.pixels + y * resized.stride, size_t{width} * kChannels, target);
  }
  return {};
}

}  // namespace searchforge
