// Opens damaged copies of a file and searches them: each must give an error, or the answer of the intact file.
//
//   damage FILE MUTATIONS SEED
//
// Every truncation of the file must fail to open. Of the mutations, half have the checksums of their blocks made right again,
// so that they reach the code behind; those may change the answer.
#include <algorithm>
#include <cstring>
#include <memory>
#include <random>

#include "base/bytes.h"
#include "table/crc32c.h"
#include "program.h"
#include "table/table.h"

namespace {

using searchforge::Bytes;
using searchforge::Cursor;
using searchforge::Load;

// Offset and size of a block in a file, without its compression byte and checksum.
struct Extent {
  uint64_t offset, size;
};

// Returns the blocks of the last table in a file, if its index of blocks is stored raw.
std::vector<Extent> Blocks(const FileBytes& file) {
  constexpr size_t kFooter = 48;
  for (size_t end = file.size(); end >= kFooter; --end) {
    if (Load<uint64_t>(file.data() + end - 8) != searchforge::kTableMagic) continue;
    Cursor footer(Bytes{file.data() + end - kFooter, kFooter});
    uint64_t ignored, offset, size;
    REQUIRE(footer.Varint(&ignored) && footer.Varint(&ignored) && footer.Varint(&offset) && footer.Varint(&size), "footer");
    const size_t start = end - kFooter - size - 5 - offset;  // of the table: the index of blocks is the last block
    std::vector<Extent> blocks = {{start + offset, size}};
    const uint32_t restarts = Load<uint32_t>(file.data() + end - kFooter - 9);
    Cursor entries(Bytes{file.data() + start + offset, size - 4 * (restarts + 1)});
    while (entries.remaining() > 0) {
      uint32_t shared, unshared, length;
      Bytes key, handle;
      REQUIRE(entries.Varint32(&shared) && entries.Varint32(&unshared) && entries.Varint32(&length) &&
                  entries.Take(unshared, &key) && entries.Take(length, &handle), "index of blocks");
      Cursor cursor(handle);
      Extent block;
      REQUIRE(cursor.Varint(&block.offset) && cursor.Varint(&block.size), "handle");
      block.offset += start;
      blocks.push_back(block);
    }
    return blocks;
  }
  return {};
}

void MakeChecksumsRight(const std::vector<Extent>& blocks, FileBytes* file) {
  for (const Extent& block : blocks) {
    const uint32_t crc = searchforge::MaskedCrc32c(Bytes{file->data() + block.offset, block.size + 1});
    std::memcpy(file->data() + block.offset + block.size + 1, &crc, sizeof(crc));
  }
}

int ReadCopy(void* context, uint64_t offset, size_t length, void* target) {
  std::memcpy(target, static_cast<const uint8_t*>(context) + offset, length);
  return 0;
}

// Tokenizes a text, if the file has an intact tokenizer.
void UseTokenizer(const sf_index* index) {
  sf_tokenizer* tokenizer;
  if (sf_open_tokenizer(index, &tokenizer) != SF_OK) return;
  constexpr size_t kLength = 8;
  const std::string text = "q1, q0 q10";
  int32_t ids[kLength];
  size_t used;
  const sf_status status = sf_tokenize(tokenizer, text.data(), text.size(), kLength, ids, nullptr, nullptr, &used);
  REQUIRE(status == SF_OK && used <= kLength, "%s", sf_error_message());
  sf_close_tokenizer(tokenizer);
}

// Opens and uses a copy whose memory ends where the file does. Returns whether every step succeeded.
bool Survives(const FileBytes& file, bool in_memory, Answer* answer) {
  const std::unique_ptr<uint8_t[]> copy(new uint8_t[file.size()]);
  std::copy(file.begin(), file.end(), copy.get());
  sf_index* index = nullptr;
  const sf_status opened = in_memory ? sf_open_memory(copy.get(), file.size(), &index)
                                     : sf_open_callback(ReadCopy, copy.get(), file.size(), &index);
  if (opened != SF_OK) {
    REQUIRE(index == nullptr && sf_error_message()[0] != '\0', "a failure without a message");
    return false;
  }
  const bool searched = Ask(index, 0, answer) == SF_OK;
  Answer more;
  const bool all = Ask(index, sf_get_shape(index).partitions, &more) == SF_OK;
  for (size_t number = 0; number < sf_file_count(index); ++number) {
    uint64_t size;
    REQUIRE(sf_file_name(index, number, &size) != nullptr, "a file without a name");
    std::vector<uint8_t> content(size);
    REQUIRE(sf_read_file(index, number, 0, size, content.data()) == SF_OK, "%s", sf_error_message());
  }
  UseTokenizer(index);
  const bool verified = sf_verify(index) == SF_OK;
  sf_close(index);
  return searched && all && verified;
}

// Changes a few bytes, half of the time near one end of the file, where its structure is. Returns whether the size is the same.
bool Mutate(std::mt19937& random, FileBytes* file) {
  const auto below = [&random](size_t limit) { return static_cast<size_t>(random() % limit); };
  const size_t size = file->size(), end = std::min<size_t>(size, 1500);
  size_t position = below(size);
  if (random() % 2 == 0) position = random() % 2 == 0 ? below(end) : size - 1 - below(end);
  const uint64_t values[] = {0, 1, 0x7f, 0x80, 0xff, 0x7fff, 0xffff, 0x7fffffff, 0x80000000, 0xffffffff, ~uint64_t{0}, random()};
  const auto from = file->begin() + static_cast<std::ptrdiff_t>(position);
  const size_t length = std::min<size_t>(size_t{1} << below(4), size - position);
  switch (random() % 8) {
    case 0:
      file->erase(from, from + static_cast<std::ptrdiff_t>(length));
      return false;
    case 1:
      file->insert(from, length, static_cast<uint8_t>(random()));
      return false;
    case 2:
    case 3:
      std::memcpy(&*from, &values[below(std::size(values))], length);
      return true;
    default:
      *from = static_cast<uint8_t>(*from ^ (1u << below(8)));
      return true;
  }
}

}  // namespace

int main(int count, char** arguments) {
  REQUIRE(count == 4, "usage: damage FILE MUTATIONS SEED");
  const FileBytes intact = ReadWholeFile(arguments[1]);
  const std::vector<Extent> blocks = Blocks(intact);
  REQUIRE(!blocks.empty(), "no table");
  Answer expected;
  REQUIRE(Survives(intact, true, &expected) && !expected.items.empty(), "the intact file: %s", sf_error_message());
  Answer again;
  REQUIRE(Survives(intact, false, &again) && again == expected, "a callback gives another answer");

  for (size_t size = 0; size < intact.size(); ++size) {
    const FileBytes cut(intact.begin(), intact.begin() + static_cast<std::ptrdiff_t>(size));
    Answer answer;
    REQUIRE(!Survives(cut, size % 2 == 0, &answer), "truncated to %zu bytes", size);
  }

  std::mt19937 random(static_cast<uint32_t>(std::atoi(arguments[3])));
  int failed = 0, different = 0;
  const int mutations = std::atoi(arguments[2]);
  for (int number = 0; number < mutations; ++number) {
    FileBytes mutated = intact;
    bool same_size = true;
    for (uint32_t changes = 1 + random() % 3; changes > 0; --changes) same_size &= Mutate(random, &mutated);
    const bool repaired = same_size && number % 2 == 0;
    if (repaired) MakeChecksumsRight(blocks, &mutated);
    Answer answer;
    if (!Survives(mutated, number % 3 == 0, &answer)) {
      ++failed;
    } else if (!(answer == expected)) {
      REQUIRE(repaired, "mutation %d changed the answer, unnoticed", number);
      ++different;
    }
  }
  std::printf("%zu truncations, %d mutations: %d refused, %d changed what is found\n", intact.size(), mutations, failed, different);
  return 0;
}
