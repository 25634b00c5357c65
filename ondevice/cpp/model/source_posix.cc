// Sources of bytes on POSIX systems: mapped files, and file descriptors with an offset and a length.
#include <fcntl.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#include <cerrno>
#include <cstring>
#include <string>

#include "model/source.h"

namespace searchforge {
namespace {

// Closes a file descriptor at the end of its scope.
class Descriptor {
 public:
  explicit Descriptor(int number) : number_(number) {}
  Descriptor(Descriptor&& other) noexcept : number_(std::exchange(other.number_, -1)) {}
  Descriptor(const Descriptor&) = delete;
  Descriptor& operator=(const Descriptor&) = delete;
  ~Descriptor() {
    if (number_ >= 0) close(number_);
  }
  int number() const { return number_; }

 private:
  int number_;
};

class MappedSource final : public Source {
 public:
  // `mapping` of `mapped` bytes has `size` bytes of the file from `skipped` on.
  MappedSource(void* mapping, size_t mapped, size_t skipped, size_t size)
      : Source(size, static_cast<const uint8_t*>(mapping) + skipped), mapping_(mapping), mapped_(mapped) {}
  ~MappedSource() override { munmap(mapping_, mapped_); }

 private:
  void* mapping_;
  size_t mapped_;
};

class DescriptorSource final : public Source {
 public:
  DescriptorSource(Descriptor descriptor, uint64_t offset, uint64_t length)
      : Source(length, nullptr), descriptor_(std::move(descriptor)), offset_(offset) {}

 protected:
  Status Copy(uint64_t offset, size_t length, uint8_t* target) const override {
    while (length > 0) {
      const ssize_t count = pread(descriptor_.number(), target, length, static_cast<off_t>(offset_ + offset));
      if (count < 0 && errno == EINTR) continue;
      if (count < 0) return IoError(std::string("the file cannot be read: ") + std::strerror(errno));
      if (count == 0) return IoError("the file ended at byte " + std::to_string(offset) + " while it was open");
      offset += static_cast<uint64_t>(count);
      target += count;
      length -= static_cast<size_t>(count);
    }
    return {};
  }

 private:
  Descriptor descriptor_;
  uint64_t offset_;
};

std::string Because(const char* path) {
  return std::string(path) + " cannot be opened: " + std::strerror(errno) + "; check the path";
}

}  // namespace

Result<std::unique_ptr<Source>> FromPath(const char* path) {
  const Descriptor descriptor(open(path, O_RDONLY | O_CLOEXEC));
  struct stat status;
  if (descriptor.number() < 0 || fstat(descriptor.number(), &status) != 0) return IoError(Because(path));
  if (!S_ISREG(status.st_mode)) return InvalidArgument(std::string(path) + " is not a file; give the path of one");
  return FromDescriptor(descriptor.number(), 0, static_cast<uint64_t>(status.st_size));
}

Result<std::unique_ptr<Source>> FromDescriptor(int descriptor, uint64_t offset, uint64_t length) {
  struct stat status;
  if (fstat(descriptor, &status) != 0) {
    return IoError("descriptor " + std::to_string(descriptor) + " is not an open file: " + std::strerror(errno));
  }
  const uint64_t size = static_cast<uint64_t>(status.st_size);
  if (S_ISREG(status.st_mode) && (offset > size || length > size - offset)) {
    return InvalidArgument(std::to_string(length) + " bytes at byte " + std::to_string(offset) +
                           " are not inside the file of " + std::to_string(size) + "; give a range that is");
  }
  const uint64_t skipped = offset % static_cast<uint64_t>(sysconf(_SC_PAGESIZE));  // mappings begin at a page
  if (length > 0 && length <= SIZE_MAX - skipped) {
    const size_t mapped = static_cast<size_t>(length + skipped);
    void* mapping = mmap(nullptr, mapped, PROT_READ, MAP_SHARED, descriptor, static_cast<off_t>(offset - skipped));
    if (mapping != MAP_FAILED) {
      return std::unique_ptr<Source>(
          new MappedSource(mapping, mapped, static_cast<size_t>(skipped), static_cast<size_t>(length)));
    }
  }
  Descriptor copy(fcntl(descriptor, F_DUPFD_CLOEXEC, 0));
  if (copy.number() < 0) return IoError(std::string("the descriptor cannot be duplicated: ") + std::strerror(errno));
  return std::unique_ptr<Source>(new DescriptorSource(std::move(copy), offset, length));
}

}  // namespace searchforge
