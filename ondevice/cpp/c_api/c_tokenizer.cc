// The C interface of the tokenizers.
#include <memory>
#include <utility>

#include "c_api/c_error.h"
#include "c_api/c_handles.h"
#include "text/model_tokenizer.h"
#include "searchforge_reader.h"

namespace {

using searchforge::Bytes;
using searchforge::Guarded;
using searchforge::Result;
using searchforge::Status;
using searchforge::Tokenizer;

Bytes View(const void* data, size_t size) { return {static_cast<const uint8_t*>(data), size}; }

Status Open(Result<std::unique_ptr<Tokenizer>> made, sf_tokenizer** tokenizer) {
  if (!made.ok()) return made.status();
  *tokenizer = new sf_tokenizer{std::move(made.value())};
  return {};
}

}  // namespace

sf_status sf_open_tokenizer(const sf_index* index, sf_tokenizer** tokenizer) {
  return Guarded([=] { return Open(searchforge::ReadTokenizer(index->index->source(), index->index->files()), tokenizer); });
}

sf_status sf_open_bert_tokenizer(const void* vocabulary, size_t size, sf_tokenizer** tokenizer) {
  return Guarded([=] { return Open(searchforge::NewBertTokenizer(View(vocabulary, size)), tokenizer); });
}

sf_status sf_open_regex_tokenizer(const char* pattern, const void* vocabulary, size_t size, sf_tokenizer** tokenizer) {
  return Guarded([=] { return Open(searchforge::NewRegexTokenizer(pattern, View(vocabulary, size)), tokenizer); });
}

void sf_close_tokenizer(sf_tokenizer* tokenizer) { delete tokenizer; }

sf_status sf_tokenize(const sf_tokenizer* tokenizer, const char* text, size_t size, size_t length, int32_t* ids, int32_t* mask,
                      int32_t* segment_ids, size_t* used) {
  return Guarded([=]() -> Status {
    SF_ASSIGN_OR_RETURN(*used, tokenizer->tokenizer->Tokenize({text, size}, {length, ids, mask, segment_ids}));
    return {};
  });
}
