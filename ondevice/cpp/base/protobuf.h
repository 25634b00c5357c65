// Reads protobuf messages field by field (https://protobuf.dev/programming-guides/encoding), without a schema.
#ifndef SEARCHFORGE_PROTOBUF_H_
#define SEARCHFORGE_PROTOBUF_H_

#include <cstdint>

#include "base/bytes.h"

namespace searchforge {

enum class WireType : uint32_t { kVarint = 0, kFixed64 = 1, kBytes = 2, kFixed32 = 5 };

// One field: its value is `number` or, of kBytes, `bytes`.
struct ProtoField {
  uint32_t id = 0;
  WireType type = WireType::kVarint;
  uint64_t number = 0;
  Bytes bytes;

  bool Is(uint32_t other_id, WireType other_type) const { return id == other_id && type == other_type; }
};

// Walks the fields of a message in their order.
class ProtoReader {
 public:
  explicit ProtoReader(Bytes message) : cursor_(message) {}

  // Reads the next field; returns false at the end of the message, and where it is damaged.
  bool Next(ProtoField* field) {
    uint32_t tag;
    if (cursor_.remaining() == 0) return false;
    damaged_ = true;
    if (!cursor_.Varint32(&tag)) return false;
    field->id = tag >> 3;
    field->type = static_cast<WireType>(tag & 7);
    damaged_ = field->id == 0 || !Value(field);
    return !damaged_;
  }

  bool damaged() const { return damaged_; }

 private:
  bool Value(ProtoField* field) {
    uint32_t narrow;
    switch (field->type) {
      case WireType::kVarint:
        return cursor_.Varint(&field->number);
      case WireType::kFixed64:
        return cursor_.Fixed(&field->number);
      case WireType::kFixed32:
        if (!cursor_.Fixed(&narrow)) return false;
        field->number = narrow;
        return true;
      case WireType::kBytes:
        return cursor_.Varint(&field->number) && cursor_.Take(field->number, &field->bytes);
      default:
        return false;
    }
  }

  Cursor cursor_;
  bool damaged_ = false;
};

}  // namespace searchforge

#endif  // SEARCHFORGE_PROTOBUF_H_
