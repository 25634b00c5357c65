// Compiles random regular expressions and tokenizes random bytes with them: each call must give an error or tokens, and allocate
// nothing when it is repeated.
//
//   regexes COUNT SEED
#include <cstring>
#include <random>

#include "counted_allocations.h"
#include "program.h"

namespace {

// Returns up to `most` of the pieces, and now and then any byte but zero.
template <size_t kCount>
std::string RandomText(const char* const (&pieces)[kCount], std::mt19937* generator, size_t most) {
  std::string text;
  for (size_t left = (*generator)() % (most + 1); left > 0; --left) {
    if ((*generator)() % 20 == 0) {
      text.push_back(static_cast<char>(1 + (*generator)() % 255));
    } else {
      text += pieces[(*generator)() % kCount];
    }
  }
  return text;
}

constexpr const char* kPattern[] = {"a", "b", "(", ")", "(?:", "|", "*", "+", "?", "{2}", "{1,3}", "{0,}", "{99}", "[", "]", "[^", "-",
                                    "\\w", "\\W", "\\s", "\\d", "\\x{72ac}", "\\x41", "\\", ".", ",", "^", "\xe7\x8a\xac", "{", "}"};
constexpr const char* kText[] = {"a", "b", "aa", "A", " ", "\n", ",", "9", "\xe7\x8a\xac", "\xe7\x8a", "\xf0\x9f\x90\x95"};
constexpr const char* kLine[] = {"<PAD> 0\n<UNKNOWN> 1\n", "<START> 2\n", "a 3\n", "b -4\n", "ab 5\n", "\n", "aa 6 7\n"};

// Tokenizes a text, exactly as long as its allocation, twice.
void Tokenize(const sf_tokenizer* tokenizer, const std::string& text, size_t length) {
  const std::vector<char> exact(text.begin(), text.end());
  std::vector<int32_t> ids(length), again(length), mask(length);
  size_t used = 0;
  const auto tokenize = [&](int32_t* target) {
    return sf_tokenize(tokenizer, exact.data(), exact.size(), length, target, mask.data(), nullptr, &used);
  };
  const sf_status status = tokenize(ids.data());
  REQUIRE((status == SF_OK) == (length > 0), "length %zu: %s", length, sf_error_message());
  if (status != SF_OK) return;
  const long before = allocations;
  REQUIRE(tokenize(again.data()) == SF_OK && ids == again, "other tokens");
  REQUIRE(allocations == before, "%ld allocations", allocations - before);
  for (size_t i = 0; i < length; ++i) REQUIRE(mask[i] == (i < used), "token %zu of %zu", i, used);
}

}  // namespace

int main(int count, char** arguments) {
  REQUIRE(count == 3, "usage: regexes COUNT SEED");
  std::mt19937 generator(static_cast<uint32_t>(std::atoi(arguments[2])));
  int outcomes[SF_OUT_OF_MEMORY + 1] = {};
  for (int i = 0; i < std::atoi(arguments[1]); ++i) {
    const std::string pattern = RandomText(kPattern, &generator, 8);
    const std::string vocabulary = kLine[0] + RandomText(kLine, &generator, 12);
    sf_tokenizer* tokenizer;
    const sf_status status = sf_open_regex_tokenizer(pattern.c_str(), vocabulary.data(), vocabulary.size(), &tokenizer);
    ++outcomes[status];
    if (status != SF_OK) continue;
    for (int text = 0; text < 10; ++text) Tokenize(tokenizer, RandomText(kText, &generator, 40), generator() % 20);
    sf_close_tokenizer(tokenizer);
  }
  for (const sf_status expected : {SF_OK, SF_INVALID_ARGUMENT, SF_DAMAGED, SF_UNSUPPORTED}) {
    REQUIRE(outcomes[expected] > 0, "no call ended with %d", expected);
  }
  return 0;
}
