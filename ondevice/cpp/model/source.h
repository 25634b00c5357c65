// Where a file's bytes come from: mapped memory, a file descriptor, a buffer of the caller, or a function of the caller.
#ifndef SEARCHFORGE_SOURCE_H_
#define SEARCHFORGE_SOURCE_H_

#include <cstddef>
#include <cstdint>
#include <functional>
#include <memory>
#include <vector>

#include "base/bytes.h"
#include "base/status.h"

namespace searchforge {

// A file of a known size. All functions may be called from several threads at once.
class Source {
 public:
  virtual ~Source() = default;

  uint64_t size() const { return size_; }

  // Returns bytes of the file: in place if the file is in memory, otherwise copied into `buffer`, which grows if need be.
  // They are valid as long as this object, and `buffer` is unchanged. Fails if the range is not inside the file.
  Result<Bytes> Read(uint64_t offset, uint64_t length, std::vector<uint8_t>& buffer) const;

  // Whether Read returns bytes in place.
  bool in_memory() const { return memory_ != nullptr; }

 protected:
  Source(uint64_t size, const uint8_t* memory) : size_(size), memory_(memory) {}

  // Copies a range that is inside the file; called only if the file is not in memory.
  virtual Status Copy(uint64_t offset, size_t length, uint8_t* target) const;

 private:
  uint64_t size_;
  const uint8_t* memory_;
};

// Copies `length` bytes from `offset` on to `target` and returns whether all of them were read.
using ReadFunction = std::function<bool(uint64_t offset, size_t length, uint8_t* target)>;

// A buffer that outlives the source.
std::unique_ptr<Source> FromMemory(Bytes bytes);

// A function that may be called from several threads at once, for a file of `size` bytes.
std::unique_ptr<Source> FromFunction(ReadFunction read, uint64_t size);

// A file, mapped into memory. It must not be truncated while it is open; replace it by renaming another file.
Result<std::unique_ptr<Source>> FromPath(const char* path);

// A part of an open file, as Android hands out assets: mapped into memory, or read where the system cannot map it. The
// descriptor is duplicated, so that the caller may close it.
Result<std::unique_ptr<Source>> FromDescriptor(int descriptor, uint64_t offset, uint64_t length);

}  // namespace searchforge

#endif  // SEARCHFORGE_SOURCE_H_
