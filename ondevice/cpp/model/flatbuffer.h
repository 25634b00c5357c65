// Reads tables of a flatbuffer (https://flatbuffers.dev/internals/) in any source; every offset is checked.
#ifndef SEARCHFORGE_FLATBUFFER_H_
#define SEARCHFORGE_FLATBUFFER_H_

#include <cstdint>
#include <optional>
#include <optional>
#include <string>
#include <vector>

#include "model/source.h"
#include "base/status.h"

namespace searchforge {

// The part of a source that is a flatbuffer.
struct FlatRegion {
  const Source* source = nullptr;
  uint64_t offset = 0;
  uint64_t size = 0;
};

// A vector, of which the elements have not been read.
struct FlatVector {
  uint64_t position = 0;  // of the first element in the region
  uint32_t count = 0;     // 0 if the table has no such field
};

// A table. Fields are numbered as in the schema, from 0. A field that is absent gives the default.
class FlatTable {
 public:
  // Returns the root table of a region, which must have the four-character identifier.
  static Result<FlatTable> Root(const FlatRegion& region, const char* identifier);

  Result<uint32_t> Number(unsigned field, uint32_t otherwise) const;   // of 32 bits
  Result<uint8_t> SmallNumber(unsigned field, uint8_t otherwise) const;  // of 8 bits
  Result<std::string> Text(unsigned field) const;                     // at most 64 KiB
  // Returns a vector whose elements have `width` bytes and lie inside the region.
  Result<FlatVector> Vector(unsigned field, unsigned width) const;
  // Returns element `number` < count of a vector of tables.
  Result<FlatTable> Element(const FlatVector& vector, uint32_t number) const;
  // Returns the table to which a field refers, if it is present.
  Result<std::optional<FlatTable>> Child(unsigned field) const;
  // Returns a vector of bytes as a region of its own.
  Result<FlatRegion> Nested(unsigned field) const;

 private:
  FlatTable(const FlatRegion& region, uint64_t position) : region_(region), position_(position) {}

  Result<uint64_t> Field(unsigned field) const;
  Result<uint64_t> Follow(uint64_t position) const;
  template <typename T>
  Result<T> At(uint64_t position) const;

  FlatRegion region_;
  uint64_t position_;
};

}  // namespace searchforge

#endif  // SEARCHFORGE_FLATBUFFER_H_
