// Sources of bytes that need no operating system, and the check of every range.
#include "model/source.h"

#include <string>
#include <utility>

namespace searchforge {
namespace {

class MemorySource final : public Source {
 public:
  explicit MemorySource(Bytes bytes) : Source(bytes.size, bytes.data) {}
};

class FunctionSource final : public Source {
 public:
  FunctionSource(ReadFunction read, uint64_t size) : Source(size, nullptr), read_(std::move(read)) {}

 protected:
  Status Copy(uint64_t offset, size_t length, uint8_t* target) const override {
    if (read_(offset, length, target)) return {};
    return IoError(std::to_string(length) + " bytes at byte " + std::to_string(offset) +
                   " could not be read by the caller's function; try again");
  }

 private:
  ReadFunction read_;
};

}  // namespace

Result<Bytes> Source::Read(uint64_t offset, uint64_t length, std::vector<uint8_t>& buffer) const {
  if (offset > size_ || length > size_ - offset) {
    return Damaged("the file refers to " + std::to_string(length) + " bytes at byte " + std::to_string(offset) +
                   ", but has " + std::to_string(size_) + "; download it again");
  }
  const size_t count = static_cast<size_t>(length);
  if (count != length) return Unsupported("the file has a part that is larger than this system's memory; use a smaller index");
  if (memory_ != nullptr) return Bytes{memory_ + offset, count};
  if (buffer.size() < count) buffer.resize(count);
  if (count > 0) {
    SF_RETURN_IF_ERROR(Copy(offset, count, buffer.data()));
  }
  return Bytes{buffer.data(), count};
}

Status Source::Copy(uint64_t, size_t, uint8_t*) const { return IoError("this source has no bytes beyond its memory"); }

std::unique_ptr<Source> FromMemory(Bytes bytes) { return std::make_unique<MemorySource>(bytes); }

std::unique_ptr<Source> FromFunction(ReadFunction read, uint64_t size) {
  return std::make_unique<FunctionSource>(std::move(read), size);
}

}  // namespace searchforge
