// Decompresses Snappy's raw format.
#include "table/snappy.h"

#include <string>

namespace searchforge {
namespace {

constexpr uint64_t kMaxExpansion = 64;

// Short pieces are copied with a fixed length, for which the output has this much room behind it.
constexpr size_t kShort = 16;

Status DamagedStream(const char* what) {
  return Damaged(std::string("a compressed block is damaged (") + what + "); download the file again");
}

// Reads the rest of a literal's length, whose first six bits are `code`.
bool LiteralLength(unsigned code, Cursor& input, uint64_t* length) {
  if (code < 60) {
    *length = code + 1;
    return true;
  }
  Bytes bytes;
  if (!input.Take(code - 59, &bytes)) return false;
  uint64_t value = 0;
  for (size_t i = 0; i < bytes.size; ++i) value |= static_cast<uint64_t>(bytes.data[i]) << (8 * i);
  *length = value + 1;
  return true;
}

// Reads the length and the distance of a copy, whose tag byte is `tag`.
bool CopyOperands(uint8_t tag, Cursor& input, uint64_t* length, uint64_t* distance) {
  uint8_t low;
  uint16_t two;
  uint32_t four;
  switch (tag & 3) {
    case 1:
      if (!input.Fixed(&low)) return false;
      *length = 4 + ((tag >> 2) & 7);
      *distance = (static_cast<uint64_t>(tag >> 5) << 8) | low;
      return true;
    case 2:
      if (!input.Fixed(&two)) return false;
      *length = (tag >> 2) + 1;
      *distance = two;
      return true;
    default:
      if (!input.Fixed(&four)) return false;
      *length = (tag >> 2) + 1;
      *distance = four;
      return true;
  }
}

}  // namespace

Result<Bytes> SnappyDecompress(Bytes compressed, std::vector<uint8_t>& buffer) {
  Cursor input(compressed);
  uint32_t size;
  if (!input.Varint32(&size)) return DamagedStream("it has no length");
  if (size > kMaxExpansion * compressed.size) return DamagedStream("its length is impossible");
  if (buffer.size() < size + kShort) buffer.resize(size + kShort);
  uint8_t* const output = buffer.data();
  uint64_t written = 0;
  uint8_t tag;
  while (input.Fixed(&tag)) {
    uint64_t length;
    if ((tag & 3) == 0) {
      Bytes literal;
      if (!LiteralLength(tag >> 2, input, &length) || !input.Take(length, &literal)) return DamagedStream("it ends early");
      if (length > size - written) return DamagedStream("it is longer than it says");
      if (length <= kShort && input.remaining() >= kShort) {
        std::memcpy(output + written, literal.data, kShort);
      } else {
        std::memcpy(output + written, literal.data, literal.size);
      }
    } else {
      uint64_t distance;
      if (!CopyOperands(tag, input, &length, &distance)) return DamagedStream("it ends early");
      if (length > size - written) return DamagedStream("it is longer than it says");
      if (distance == 0 || distance > written) return DamagedStream("it refers to bytes before its start");
      const uint8_t* from = output + written - distance;
      if (length <= kShort && distance >= kShort) {
        std::memcpy(output + written, from, kShort);
      } else if (distance >= length) {
        std::memcpy(output + written, from, static_cast<size_t>(length));
      } else {  // the copy repeats what it writes
        for (uint64_t i = 0; i < length; ++i) output[written + i] = from[i];
      }
    }
    written += length;
  }
  if (written != size) return DamagedStream("it is shorter than it says");
  return Bytes{output, static_cast<size_t>(size)};
}

}  // namespace searchforge
