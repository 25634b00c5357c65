// Views of bytes, and a cursor that never leaves them. All numbers in the files are little-endian.
#ifndef SEARCHFORGE_BYTES_H_
#define SEARCHFORGE_BYTES_H_

#include <cstddef>
#include <cstdint>
#include <cstring>
#include <string_view>

namespace searchforge {

// Bytes that somebody else owns.
struct Bytes {
  const uint8_t* data = nullptr;
  size_t size = 0;

  const uint8_t* begin() const { return data; }
  const uint8_t* end() const { return data + size; }
  std::string_view text() const { return {reinterpret_cast<const char*>(data), size}; }
};

// Returns the number at `data`, which may be at any address.
template <typename T>
T Load(const uint8_t* data) {
  static_assert(__BYTE_ORDER__ == __ORDER_LITTLE_ENDIAN__, "the files and this code are little-endian");
  T value;
  std::memcpy(&value, data, sizeof(T));
  return value;
}

// Reads a sequence of numbers and byte strings. A failed read returns false and writes nothing; the cursor is then useless.
class Cursor {
 public:
  explicit Cursor(Bytes bytes) : position_(bytes.begin()), end_(bytes.end()) {}

  size_t remaining() const { return static_cast<size_t>(end_ - position_); }

  template <typename T>
  bool Fixed(T* value) {
    if (remaining() < sizeof(T)) return false;
    *value = Load<T>(position_);
    position_ += sizeof(T);
    return true;
  }

  // Reads a base-128 integer of at most 64 bits.
  bool Varint(uint64_t* value) {
    uint64_t result = 0;
    const uint8_t* position = position_;
    for (unsigned shift = 0; shift < 64 && position < end_; shift += 7) {
      const uint64_t byte = *position++;
      if (shift == 63 && byte > 1) return false;
      result |= (byte & 127) << shift;
      if (byte < 128) {
        *value = result;
        position_ = position;
        return true;
      }
    }
    return false;
  }

  bool Varint32(uint32_t* value) {
    uint64_t wide;
    if (!Varint(&wide) || wide > UINT32_MAX) return false;
    *value = static_cast<uint32_t>(wide);
    return true;
  }

  bool Take(uint64_t size, Bytes* taken) {
    if (remaining() < size) return false;
    *taken = {position_, static_cast<size_t>(size)};
    position_ += size;
    return true;
  }

 private:
  const uint8_t* position_;
  const uint8_t* end_;
};

}  // namespace searchforge

#endif  // SEARCHFORGE_BYTES_H_
