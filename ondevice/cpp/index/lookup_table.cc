// Fills look-up tables with the Task Library's rounding, and bounds them by bytes.
#include "index/lookup_table.h"

#include <algorithm>
#include <cmath>
#include <limits>

#include "kernels/tiles.h"

namespace searchforge {
namespace {

// Number of blocks whose numbers are summed before they are scaled to a distance.
constexpr uint32_t kSummed = 32;
// A range below which all numbers of a table count as equal.
constexpr float kNarrowest = 1e-30f;

constexpr size_t kEntryTiles = kEntries / kTileRows;

// Largest number of a table by look-up type: kSummed of them add up within 16 bits.
float Levels(LookupType type) { return type == LookupType::kInt16 ? 2047.0f : 255.0f; }

}  // namespace

Codebooks::Codebooks(const IndexConfig& config)
    : widths_(config.widths), tiles_(static_cast<size_t>(config.dim) * kEntries), type_(config.lookup_type) {
  const float* book = config.codebooks.data();
  float* tiles = tiles_.data();
  for (const uint32_t width : widths_) {
    for (uint32_t entry = 0; entry < kEntries; ++entry) {
      WriteRow(book + static_cast<size_t>(std::min(entry, config.entries - 1)) * width, entry, width, tiles);
    }
    book += static_cast<size_t>(config.entries) * width;
    tiles += static_cast<size_t>(kEntries) * width;
  }
}

LookupTable::LookupTable(const Codebooks& codebooks)
    : blocks_(codebooks.blocks()),
      numbers_(blocks_ * size_t{kEntries}),
      bytes_(blocks_ * size_t{kEntries}),
      lows_(blocks_) {}

bool LookupTable::Fill(const Codebooks& codebooks, const Kernels& kernels, const float* query) {
  const float* tiles = codebooks.tiles_.data();
  float* row = numbers_.data();
  for (const uint32_t width : codebooks.widths_) {
    kernels.distances(tiles, kEntryTiles, width, PanelColumns(kEntries, width), query, row);
    tiles += static_cast<size_t>(kEntries) * width;
    query += width;
    row += kEntries;
  }
  scale_ = 1;
  offset_ = 0;
  if (codebooks.type_ != LookupType::kFloat && !Quantize(codebooks.type_, kernels)) return false;
  return FillBytes(kernels);
}

// Replaces the distances by whole numbers from 0 to Levels, and sets scale and offset.
bool LookupTable::Quantize(LookupType type, const Kernels& kernels) {
  float least = numbers_[0], most = least;
  for (uint32_t block = 0; block < blocks_; ++block) {
    float low, high;
    kernels.range(&numbers_[block * size_t{kEntries}], &low, &high);
    least = std::min(least, low);
    most = std::max(most, high);
  }
  const float levels = Levels(type), range = most - least;
  if (!std::isfinite(range)) return false;
  const float to_level = levels / std::max(range, std::numeric_limits<float>::epsilon());
  for (uint32_t block = 0; block < blocks_; ++block) {
    kernels.levels(&numbers_[block * size_t{kEntries}], least, to_level);
  }
  scale_ = range / levels;
  offset_ = least + scale_ / 2;
  return true;
}

// Rounds each block's numbers down to bytes, in steps of the widest block's range.
bool LookupTable::FillBytes(const Kernels& kernels) {
  float widest = 0;
  double least = 0, magnitude = 0;
  for (uint32_t block = 0; block < blocks_; ++block) {
    float high;
    kernels.range(&numbers_[block * size_t{kEntries}], &lows_[block], &high);
    widest = std::max(widest, high - lows_[block]);
    least += lows_[block];
    magnitude += std::max(std::fabs(lows_[block]), std::fabs(high));
  }
  if (!std::isfinite(widest) || !std::isfinite(static_cast<float>(magnitude))) return false;
  step_ = widest > kNarrowest ? widest / 255.0 : 1.0;
  least_ = least;
  // Sums of `blocks_` numbers in float are off by at most this much; two steps more cover the rounding of the bytes.
  const double offsets = scale_ > 0 ? blocks_ * std::fabs(static_cast<double>(offset_) / scale_) : 0;
  slack_ = 2 + std::ldexp((magnitude + offsets) * blocks_, -22) / step_;
  for (uint32_t block = 0; block < blocks_; ++block) {
    const size_t start = block * size_t{kEntries};
    kernels.bytes(&numbers_[start], lows_[block], static_cast<float>(1 / step_), &bytes_[start]);
  }
  return true;
}

float LookupTable::Distance(const uint8_t* code) const {
  const float* row = numbers_.data();
  float distance = 0;
  for (uint32_t start = 0; start < blocks_; start += kSummed) {
    const uint32_t end = std::min(start + kSummed, blocks_);
    float sum = 0;
    for (uint32_t block = start; block < end; ++block, row += kEntries) sum += row[code[block]];
    distance += scale_ * sum + static_cast<float>(end - start) * offset_;
  }
  return distance;
}

uint32_t LookupTable::SumBelow(float distance) const {
  if (!(scale_ > 0)) return UINT32_MAX;
  const double sum = (static_cast<double>(distance) - static_cast<double>(blocks_) * offset_) / scale_;
  const double bytes = (sum - least_) / step_ + slack_;
  if (!(bytes < UINT32_MAX)) return UINT32_MAX;
  return bytes > 0 ? static_cast<uint32_t>(bytes) : 0;
}

}  // namespace searchforge
