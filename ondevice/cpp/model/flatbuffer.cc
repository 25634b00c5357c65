// Reads tables of a flatbuffer: a table refers to a list of its fields' offsets, and vectors and tables to one another.
#include "model/flatbuffer.h"

#include <cstring>

namespace searchforge {
namespace {

constexpr uint32_t kMaxText = 1 << 16;
constexpr unsigned kOffset = sizeof(uint32_t);

Status DamagedModel(const char* what) {
  return Damaged(std::string("the model's flatbuffer is damaged (") + what + "); download the file again");
}

}  // namespace

template <typename T>
Result<T> FlatTable::At(uint64_t position) const {
  if (region_.size < sizeof(T) || position > region_.size - sizeof(T)) return DamagedModel("an offset leaves it");
  std::vector<uint8_t> buffer;
  Bytes bytes;
  SF_ASSIGN_OR_RETURN(bytes, region_.source->Read(region_.offset + position, sizeof(T), buffer));
  return Load<T>(bytes.data);
}

Result<FlatTable> FlatTable::Root(const FlatRegion& region, const char* identifier) {
  const FlatTable start(region, 0);
  uint32_t found, expected;
  SF_ASSIGN_OR_RETURN(found, start.At<uint32_t>(kOffset));
  std::memcpy(&expected, identifier, sizeof(expected));
  if (found != expected) return DamagedModel("its identifier is not the expected one");
  uint64_t position;
  SF_ASSIGN_OR_RETURN(position, start.Follow(0));
  return FlatTable(region, position);
}

// Returns the position to which the unsigned offset at `position` refers.
Result<uint64_t> FlatTable::Follow(uint64_t position) const {
  uint32_t offset;
  SF_ASSIGN_OR_RETURN(offset, At<uint32_t>(position));
  if (offset > region_.size - position) return DamagedModel("an offset leaves it");
  return position + offset;
}

// Returns the position of a field, or 0 if it is absent.
Result<uint64_t> FlatTable::Field(unsigned field) const {
  int32_t back;
  SF_ASSIGN_OR_RETURN(back, At<int32_t>(position_));
  const int64_t list = static_cast<int64_t>(position_) - back;
  if (list < 0) return DamagedModel("an offset leaves it");
  const uint64_t start = static_cast<uint64_t>(list), entry = 4 + 2 * static_cast<uint64_t>(field);
  uint16_t size, offset;
  SF_ASSIGN_OR_RETURN(size, At<uint16_t>(start));
  if (entry + sizeof(uint16_t) > size) return uint64_t{0};
  SF_ASSIGN_OR_RETURN(offset, At<uint16_t>(start + entry));
  return offset == 0 ? uint64_t{0} : position_ + offset;
}

Result<uint32_t> FlatTable::Number(unsigned field, uint32_t otherwise) const {
  uint64_t position;
  SF_ASSIGN_OR_RETURN(position, Field(field));
  return position == 0 ? Result<uint32_t>(otherwise) : At<uint32_t>(position);
}

Result<uint8_t> FlatTable::SmallNumber(unsigned field, uint8_t otherwise) const {
  uint64_t position;
  SF_ASSIGN_OR_RETURN(position, Field(field));
  return position == 0 ? Result<uint8_t>(otherwise) : At<uint8_t>(position);
}

Result<FlatVector> FlatTable::Vector(unsigned field, unsigned width) const {
  uint64_t position;
  SF_ASSIGN_OR_RETURN(position, Field(field));
  if (position == 0) return FlatVector{};
  SF_ASSIGN_OR_RETURN(position, Follow(position));
  FlatVector vector;
  SF_ASSIGN_OR_RETURN(vector.count, At<uint32_t>(position));
  vector.position = position + kOffset;
  if (vector.count > (region_.size - vector.position) / width) return DamagedModel("a vector leaves it");
  return vector;
}

Result<FlatTable> FlatTable::Element(const FlatVector& vector, uint32_t number) const {
  uint64_t position;
  SF_ASSIGN_OR_RETURN(position, Follow(vector.position + uint64_t{kOffset} * number));
  return FlatTable(region_, position);
}

Result<std::optional<FlatTable>> FlatTable::Child(unsigned field) const {
  uint64_t position;
  SF_ASSIGN_OR_RETURN(position, Field(field));
  if (position == 0) return std::optional<FlatTable>();
  SF_ASSIGN_OR_RETURN(position, Follow(position));
  return std::optional<FlatTable>(FlatTable(region_, position));
}

Result<std::string> FlatTable::Text(unsigned field) const {
  FlatVector text;
  SF_ASSIGN_OR_RETURN(text, Vector(field, 1));
  if (text.count > kMaxText) return DamagedModel("a name is too long");
  std::vector<uint8_t> buffer;
  Bytes bytes;
  SF_ASSIGN_OR_RETURN(bytes, region_.source->Read(region_.offset + text.position, text.count, buffer));
  return std::string(bytes.text());
}

Result<FlatRegion> FlatTable::Nested(unsigned field) const {
  FlatVector bytes;
  SF_ASSIGN_OR_RETURN(bytes, Vector(field, 1));
  return FlatRegion{region_.source, region_.offset + bytes.position, bytes.count};
}

}  // namespace searchforge
