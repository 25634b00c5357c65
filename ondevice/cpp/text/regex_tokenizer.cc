// The Task Library's RegexTokenizer: the parts of a text between the matches of a regular expression are its tokens.
#include <algorithm>
#include <string>
#include <utility>

#include "text/regex.h"
#include "text/tokenizer.h"
#include "text/vocabulary.h"

namespace searchforge {
namespace {

class RegexTokenizer : public Tokenizer {
 public:
  RegexTokenizer(Regex delimiter, Vocabulary vocabulary, int32_t padding, int32_t unknown)
      : delimiter_(std::move(delimiter)), vocabulary_(std::move(vocabulary)), padding_(padding), unknown_(unknown) {
    has_start_ = vocabulary_.Find("<START>", &start_);
  }

  Result<size_t> Tokenize(std::string_view text, const TokenTensors& target) const override {
    if (target.length == 0) return InvalidArgument("tensors of 0 tokens; expected at least 1");
    thread_local RegexSearch search;
    size_t used = 0;
    if (has_start_) target.ids[used++] = start_;
    RegexMatch match;
    size_t start = 0;
    for (; used < target.length && search.Find(delimiter_, text, start, &match); start = match.end) {
      if (match.start > start) target.ids[used++] = Id(text.substr(start, match.start - start));
    }
    if (used < target.length && start < text.size()) target.ids[used++] = Id(text.substr(start));
    std::fill(target.ids + used, target.ids + target.length, padding_);
    if (target.mask != nullptr) std::fill(std::fill_n(target.mask, used, 1), target.mask + target.length, 0);
    if (target.segment_ids != nullptr) std::fill_n(target.segment_ids, target.length, 0);
    return used;
  }

 private:
  int32_t Id(std::string_view token) const {
    int32_t id = unknown_;
    vocabulary_.Find(token, &id);
    return id;
  }

  Regex delimiter_;
  Vocabulary vocabulary_;
  bool has_start_ = false;
  int32_t start_ = 0, padding_, unknown_;
};

}  // namespace

Result<std::unique_ptr<Tokenizer>> NewRegexTokenizer(std::string_view pattern, Bytes vocabulary) {
  auto delimiter = CompileRegex(pattern);
  if (!delimiter.ok()) return delimiter.status();
  auto words = Vocabulary::FromNumberedLines(vocabulary);
  if (!words.ok()) return words.status();
  int32_t padding, unknown;
  if (!words.value().Find("<PAD>", &padding) || !words.value().Find("<UNKNOWN>", &unknown)) {
    return Damaged("the vocabulary lacks <PAD> or <UNKNOWN>; export the encoder again");
  }
  return std::unique_ptr<Tokenizer>(
      std::make_unique<RegexTokenizer>(std::move(delimiter.value()), std::move(words.value()), padding, unknown));
}

}  // namespace searchforge
