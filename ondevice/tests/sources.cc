// Opens one file in every way, and asks the same: a path, a part of a larger file, memory, and a callback.
//
//   sources FILE SCRATCH
#include <fcntl.h>
#include <unistd.h>

#include <cstring>

#include "program.h"

namespace {

constexpr uint64_t kBefore = 5000, kAfter = 77;  // bytes around the file in the larger one; mappings begin at pages

Answer AskAndClose(sf_status opened, sf_index* index) {
  Answer answer;
  REQUIRE(opened == SF_OK, "%s", sf_error_message());
  REQUIRE(Ask(index, 0, &answer) == SF_OK, "%s", sf_error_message());
  REQUIRE(sf_verify(index) == SF_OK, "%s", sf_error_message());
  sf_close(index);
  return answer;
}

int ReadFile(void* context, uint64_t offset, size_t length, void* target) {
  std::memcpy(target, static_cast<const FileBytes*>(context)->data() + offset, length);
  return 0;
}

int Fail(void*, uint64_t, size_t, void*) { return 1; }

}  // namespace

int main(int count, char** arguments) {
  REQUIRE(count == 3, "usage: sources FILE SCRATCH");
  FileBytes file = ReadWholeFile(arguments[1]);
  sf_index* index;
  sf_status status = sf_open_path(arguments[1], &index);
  const Answer expected = AskAndClose(status, index);
  REQUIRE(expected.items.size() == kHits, "%zu hits", expected.items.size());

  status = sf_open_memory(file.data(), file.size(), &index);
  REQUIRE(AskAndClose(status, index) == expected, "from memory");
  status = sf_open_callback(ReadFile, &file, file.size(), &index);
  REQUIRE(AskAndClose(status, index) == expected, "from a callback");
  REQUIRE(sf_open_callback(Fail, nullptr, file.size(), &index) == SF_IO, "a callback that fails");

  FileBytes larger(kBefore, 0xaa);
  larger.insert(larger.end(), file.begin(), file.end());
  larger.insert(larger.end(), kAfter, 0xbb);
  std::ofstream(arguments[2], std::ios::binary).write(reinterpret_cast<const char*>(larger.data()), static_cast<long>(larger.size()));
  int descriptor = open(arguments[2], O_RDONLY);
  REQUIRE(sf_open_descriptor(descriptor, kBefore, larger.size(), &index) == SF_INVALID_ARGUMENT, "a range beyond the end");
  status = sf_open_descriptor(descriptor, kBefore, file.size(), &index);
  close(descriptor);
  REQUIRE(AskAndClose(status, index) == expected, "from a descriptor");

  REQUIRE(sf_open_path("/nonexistent", &index) == SF_IO, "%s", sf_error_message());
  REQUIRE(std::strstr(sf_error_message(), "/nonexistent cannot be opened: No such file") != nullptr, "%s", sf_error_message());
  sf_close(nullptr);
  return 0;
}
