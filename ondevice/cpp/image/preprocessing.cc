// Parses preprocessing strings, and scales pixels.
#include "image/preprocessing.h"

#include <algorithm>
#include <string>

namespace searchforge {
namespace {

constexpr int kMaxDigits = 15;  // any such number, and any such power of 10, is exact as a double

// Takes the parts of a string from its start. A failed call leaves the rest as it was, or useless.
class Scanner {
 public:
  explicit Scanner(std::string_view text) : rest_(text) {}

  bool AtEnd() const { return rest_.empty(); }

  bool Skip(std::string_view expected) {
    if (rest_.substr(0, expected.size()) != expected) return false;
    rest_.remove_prefix(expected.size());
    return true;
  }

  // Takes digits; adds their number to `digits`, which is bounded by kMaxDigits.
  bool Digits(uint64_t* value, int* digits) {
    const int before = *digits;
    for (; !rest_.empty() && rest_[0] >= '0' && rest_[0] <= '9'; rest_.remove_prefix(1)) {
      *value = 10 * *value + static_cast<uint64_t>(rest_[0] - '0');
      if (++*digits > kMaxDigits) return false;
    }
    return *digits > before;
  }

  bool Side(uint32_t* side) {
    uint64_t value = 0;
    int digits = 0;
    if (!Digits(&value, &digits)) return false;
    *side = static_cast<uint32_t>(std::min<uint64_t>(value, UINT32_MAX));
    return true;
  }

  // Takes a decimal number without an exponent.
  bool Number(double* number) {
    const bool negative = Skip("-");
    uint64_t value = 0;
    int digits = 0;
    if (!Digits(&value, &digits)) return false;
    double scale = 1;
    if (Skip(".")) {
      const int whole = digits;
      if (!Digits(&value, &digits)) return false;
      for (int i = whole; i < digits; ++i) scale *= 10;
    }
    *number = (negative ? -1 : 1) * (static_cast<double>(value) / scale);
    return true;
  }

  // Takes one number for all channels, or a list of three.
  bool Channels(std::array<double, 3>* values) {
    if (Skip("[")) {
      auto& [red, green, blue] = *values;
      return Number(&red) && Skip(",") && Number(&green) && Skip(",") && Number(&blue) && Skip("]");
    }
    if (!Number(&(*values)[0])) return false;
    values->fill((*values)[0]);
    return true;
  }

 private:
  std::string_view rest_;
};

bool TakeFilter(Scanner* scanner, Filter* filter) {
  *filter = scanner->Skip("bilinear") ? Filter::kBilinear : Filter::kBicubic;
  return *filter == Filter::kBilinear || scanner->Skip("bicubic");
}

}  // namespace

Result<Preprocessing> ParsePreprocessing(std::string_view text) {
  Scanner scanner(text);
  Preprocessing parsed;
  std::array<double, 3> low, high;
  bool valid = scanner.Skip("decode|resize(") && scanner.Side(&parsed.height) && scanner.Skip(",") &&
               scanner.Side(&parsed.width) && scanner.Skip(",") && TakeFilter(&scanner, &parsed.filter) &&
               scanner.Skip(")|scale(") && scanner.Channels(&low) && scanner.Skip(",") && scanner.Channels(&high) &&
               scanner.Skip(")") && scanner.AtEnd() && parsed.height > 0 && parsed.width > 0;
  for (size_t channel = 0; valid && channel < 3; ++channel) {
    const double range = high[channel] - low[channel];
    valid = range != 0;
    parsed.mean[channel] = static_cast<float>(-low[channel] * (255 / range));
    parsed.std[channel] = static_cast<float>(255 / range);
  }
  if (!valid) {
    return InvalidArgument("invalid preprocessing '" + std::string(text.substr(0, 200)) +
                           "'; expected the form decode|resize(224,224,bilinear)|scale(-1,1), with numbers of at most " +
                           std::to_string(kMaxDigits) + " digits and two different values in scale");
  }
  if (std::max(parsed.height, parsed.width) > kMaxInputSide) {
    return Unsupported("the encoder's images are " + std::to_string(parsed.width) + " x " + std::to_string(parsed.height) +
                       " pixels; this library resizes to at most " + std::to_string(kMaxInputSide) + " on a side");
  }
  return parsed;
}

void Scale(const Preprocessing& preprocessing, const uint8_t* pixels, float* target) {
  const size_t count = size_t{3} * preprocessing.height * preprocessing.width;
  for (size_t i = 0; i < count; i += 3) {
    for (size_t channel = 0; channel < 3; ++channel) {
      target[i + channel] = (pixels[i + channel] - preprocessing.mean[channel]) / preprocessing.std[channel];
    }
  }
}

}  // namespace searchforge
