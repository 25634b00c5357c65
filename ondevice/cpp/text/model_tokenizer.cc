// Finds the tokenizer as the Task Library does: it belongs to all inputs of a model (BERT), or to its only one.
#include "text/model_tokenizer.h"

#include <algorithm>
#include <optional>
#include <string>

#include "model/model_metadata.h"

namespace searchforge {
namespace {

constexpr unsigned kSubgraphInputs = 2, kSubgraphInputUnits = 5;
constexpr unsigned kTensorUnits = 4;
constexpr unsigned kUnitType = 0, kUnitOptions = 1;
constexpr uint8_t kBert = 4, kSentencePiece = 5, kRegex = 6;
constexpr unsigned kBertVocabulary = 0;
constexpr unsigned kRegexPattern = 0, kRegexVocabulary = 1;
constexpr unsigned kFileName = 0;

// Returns the process unit of a vector of them that has a type, if any does.
Result<std::optional<FlatTable>> UnitOfType(const FlatTable& table, unsigned field, uint8_t type) {
  FlatVector units;
  SF_ASSIGN_OR_RETURN(units, table.Vector(field, kTableWidth));
  for (uint32_t number = 0; number < units.count; ++number) {
    const Result<FlatTable> unit = table.Element(units, number);
    if (!unit.ok()) return unit.status();
    uint8_t found;
    SF_ASSIGN_OR_RETURN(found, unit.value().SmallNumber(kUnitType, 0));
    if (found == type) return std::optional<FlatTable>(unit.value());
  }
  return std::optional<FlatTable>();
}

// Returns the unit of the tokenizer, if the model has one.
Result<std::optional<FlatTable>> TokenizerUnit(const Source& source) {
  std::optional<FlatTable> subgraph, unit, input;
  SF_ASSIGN_OR_RETURN(subgraph, ReadSubgraphMetadata(source));
  if (!subgraph) return subgraph;
  SF_ASSIGN_OR_RETURN(unit, FirstElement(*subgraph, kSubgraphInputUnits));
  if (unit) return unit;
  SF_ASSIGN_OR_RETURN(input, FirstElement(*subgraph, kSubgraphInputs));
  if (!input) return input;
  return UnitOfType(*input, kTensorUnits, kRegex);
}

// Returns the bytes of the first associated file that a field of a tokenizer's options names.
Result<Bytes> Vocabulary(const FlatTable& options, unsigned field, const Source& source, const std::vector<ArchivedFile>& files,
                         std::vector<uint8_t>& buffer) {
  std::optional<FlatTable> named;
  SF_ASSIGN_OR_RETURN(named, FirstElement(options, field));
  std::string name;
  if (named) {
    SF_ASSIGN_OR_RETURN(name, named->Text(kFileName));
  }
  const auto file = std::find_if(files.rbegin(), files.rend(), [&](const ArchivedFile& candidate) { return candidate.name == name; });
  if (file == files.rend()) return Damaged("the tokenizer's vocabulary '" + name + "' is missing; download the file again");
  return source.Read(file->offset, file->size, buffer);
}

}  // namespace

Result<std::unique_ptr<Tokenizer>> ReadTokenizer(const Source& source, const std::vector<ArchivedFile>& files) {
  std::optional<FlatTable> unit, options;
  if (!files.empty()) {  // a file without any may be no model at all
    SF_ASSIGN_OR_RETURN(unit, TokenizerUnit(source));
  }
  uint8_t type = 0;
  if (unit) {
    SF_ASSIGN_OR_RETURN(type, unit->SmallNumber(kUnitType, 0));
    SF_ASSIGN_OR_RETURN(options, unit->Child(kUnitOptions));
  }
  std::vector<uint8_t> buffer;
  Bytes vocabulary;
  if (options && type == kBert) {
    SF_ASSIGN_OR_RETURN(vocabulary, Vocabulary(*options, kBertVocabulary, source, files, buffer));
    return NewBertTokenizer(vocabulary);
  }
  if (options && type == kRegex) {
    std::string pattern;
    SF_ASSIGN_OR_RETURN(pattern, options->Text(kRegexPattern));
    SF_ASSIGN_OR_RETURN(vocabulary, Vocabulary(*options, kRegexVocabulary, source, files, buffer));
    return NewRegexTokenizer(pattern, vocabulary);
  }
  return Unsupported(type == kSentencePiece
                         ? "the encoder's tokenizer is a SentencePiece model, which this library lacks; use the Task Library"
                         : "the file has no tokenizer in its metadata; open a text searcher whose encoder takes tokens");
}

}  // namespace searchforge
