// Finds the index in a TFLite file through the metadata of its first output tensor, as the Task Library does.
#include "model/model_file.h"

#include <optional>
#include <utility>

#include "model/model_metadata.h"
#include "table/table.h"

namespace searchforge {
namespace {

constexpr unsigned kSubgraphOutputs = 3;
constexpr unsigned kTensorFiles = 6;
constexpr unsigned kFileName = 0, kFileType = 2;
constexpr uint8_t kScannIndexFile = 6;

Status NoIndex(const char* what) {
  return InvalidArgument(std::string("the file ") + what + "; open a searcher, or the .ldb file of an index");
}

// Returns the name of the index among the files of the first output tensor.
Result<std::string> IndexName(const Source& source) {
  std::optional<FlatTable> subgraph, output;
  SF_ASSIGN_OR_RETURN(subgraph, ReadSubgraphMetadata(source));
  if (subgraph) {
    SF_ASSIGN_OR_RETURN(output, FirstElement(*subgraph, kSubgraphOutputs));
  }
  if (!output) return NoIndex("is a model whose metadata describes no output");
  FlatVector files;
  SF_ASSIGN_OR_RETURN(files, output->Vector(kTensorFiles, kTableWidth));
  for (uint32_t number = 0; number < files.count; ++number) {
    const Result<FlatTable> file = output->Element(files, number);
    if (!file.ok()) return file.status();
    uint8_t type;
    SF_ASSIGN_OR_RETURN(type, file.value().SmallNumber(kFileType, 0));
    if (type == kScannIndexFile) return file.value().Text(kFileName);
  }
  return NoIndex("is a model without an index");
}

Result<bool> IsTable(const Source& source) {
  if (source.size() < sizeof(kTableMagic)) return false;
  std::vector<uint8_t> buffer;
  Bytes end;
  SF_ASSIGN_OR_RETURN(end, source.Read(source.size() - sizeof(kTableMagic), sizeof(kTableMagic), buffer));
  return Load<uint64_t>(end.data) == kTableMagic;
}

}  // namespace

Result<ModelFile> ReadModelFile(const Source& source) {
  ModelFile model;
  bool table;
  SF_ASSIGN_OR_RETURN(table, IsTable(source));
  if (table) {
    model.index = {"", 0, source.size()};
    return model;
  }
  std::string name;
  SF_ASSIGN_OR_RETURN(name, IndexName(source));
  std::vector<ArchivedFile> files;
  SF_ASSIGN_OR_RETURN(files, ReadArchive(source));
  for (ArchivedFile& file : files) {
    if (file.name == name) {
      model.index = std::move(file);
    } else {
      model.files.push_back(std::move(file));
    }
  }
  if (model.index.size == 0) return Damaged("associated file " + name + " is missing; download the file again");
  return model;
}

}  // namespace searchforge
