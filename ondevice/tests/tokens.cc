// Tokenizes random bytes with vocabularies of random bytes: each call must give tokens of the vocabulary, and allocate nothing.
//
//   tokens COUNT SEED
#include <random>

#include "counted_allocations.h"
#include "program.h"

namespace {

// Returns up to `most` bytes, many of which mean something to a tokenizer.
std::string RandomBytes(std::mt19937* generator, size_t most) {
  static const std::string kPieces[] = {
      "\n", " ", "a", "b", "##", "##a", "[UNK]\n", "[CLS]\n[SEP]\n", "\xe7\x8a\xac", "\xf0\x9f\x90\x95", "\xe2\x80", std::string(99, 'a')};
  std::string bytes;
  for (const size_t size = (*generator)() % (most + 1); bytes.size() < size;) {
    if ((*generator)() % 3 == 0) {
      bytes.push_back(static_cast<char>((*generator)()));
    } else {
      bytes += kPieces[(*generator)() % (sizeof(kPieces) / sizeof(kPieces[0]))];
    }
  }
  return bytes;
}

// Tokenizes `text`, exactly as long as its allocation, so that the sanitizers see every byte beyond it.
void Tokenize(const sf_tokenizer* tokenizer, const std::string& text, size_t length, size_t lines) {
  const std::vector<char> exact(text.begin(), text.end());
  std::vector<int32_t> ids(length, -1), mask(length, -1), segment_ids(length, -1);
  size_t used = 0;
  const long before = allocations;
  const sf_status status =
      sf_tokenize(tokenizer, exact.data(), exact.size(), length, ids.data(), mask.data(), segment_ids.data(), &used);
  REQUIRE((status == SF_OK) == (length >= 2), "length %zu: %s", length, sf_error_message());
  if (status != SF_OK) return;
  REQUIRE(allocations == before, "%ld allocations", allocations - before);
  REQUIRE(used >= 2 && used <= length, "%zu of %zu tokens", used, length);
  for (size_t i = 0; i < length; ++i) {
    REQUIRE(ids[i] >= 0 && static_cast<size_t>(ids[i]) <= lines, "id %d of %zu lines", ids[i], lines);
    REQUIRE(mask[i] == (i < used) && segment_ids[i] == 0 && (i < used || ids[i] == 0), "token %zu of %zu", i, used);
  }
}

}  // namespace

int main(int count, char** arguments) {
  REQUIRE(count == 3, "usage: tokens COUNT SEED");
  std::mt19937 generator(static_cast<uint32_t>(std::atoi(arguments[2])));
  for (int i = 0; i < std::atoi(arguments[1]); ++i) {
    const std::string vocabulary = RandomBytes(&generator, 500);
    size_t lines = 0;
    for (const char byte : vocabulary) lines += byte == '\n';
    sf_tokenizer* tokenizer;
    REQUIRE(sf_open_bert_tokenizer(vocabulary.data(), vocabulary.size(), &tokenizer) == SF_OK, "%s", sf_error_message());
    for (int text = 0; text < 20; ++text) {
      Tokenize(tokenizer, RandomBytes(&generator, 300), generator() % 40, lines);
    }
    sf_close_tokenizer(tokenizer);
  }
  REQUIRE(allocations > 0, "nothing was counted");
  return 0;
}
