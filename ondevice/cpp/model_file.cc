// Finds the index in a TFLite file through the metadata of its first output tensor, as the Task Library does.
//
// The fields of the tables are numbered by tensorflow/compiler/mlir/lite/schema/schema.fbs and
// tensorflow_lite_support/metadata/metadata_schema.fbs.
#include "model_file.h"

#include <optional>
#include <utility>

#include "flatbuffer.h"
#include "table.h"

namespace searchforge {
namespace {

constexpr char kModelIdentifier[] = "TFL3", kMetadataIdentifier[] = "M001";
constexpr char kMetadataName[] = "TFLITE_METADATA";
constexpr unsigned kModelBuffers = 4, kModelMetadata = 6;
constexpr unsigned kEntryName = 0, kEntryBuffer = 1;
constexpr unsigned kBufferData = 0;
constexpr unsigned kMetadataSubgraphs = 3;
constexpr unsigned kSubgraphOutputs = 3;
constexpr unsigned kTensorFiles = 6;
constexpr unsigned kFileName = 0, kFileType = 2;
constexpr uint8_t kScannIndexFile = 6;
constexpr unsigned kTableWidth = 4;  // bytes of a reference to a table

Status NoIndex(const char* what) {
  return InvalidArgument(std::string("the file ") + what + "; open a searcher, or the .ldb file of an index");
}

// Returns the metadata of a model.
Result<FlatTable> Metadata(const FlatTable& model) {
  FlatVector entries, buffers;
  SF_ASSIGN_OR_RETURN(entries, model.Vector(kModelMetadata, kTableWidth));
  SF_ASSIGN_OR_RETURN(buffers, model.Vector(kModelBuffers, kTableWidth));
  for (uint32_t number = 0; number < entries.count; ++number) {
    const Result<FlatTable> entry = model.Element(entries, number);
    if (!entry.ok()) return entry.status();
    std::string name;
    SF_ASSIGN_OR_RETURN(name, entry.value().Text(kEntryName));
    if (name != kMetadataName) continue;
    uint32_t buffer;
    SF_ASSIGN_OR_RETURN(buffer, entry.value().Number(kEntryBuffer, 0));
    if (buffer >= buffers.count) return Damaged("the model's metadata is missing; download the file again");
    const Result<FlatTable> holder = model.Element(buffers, buffer);
    if (!holder.ok()) return holder.status();
    FlatRegion region;
    SF_ASSIGN_OR_RETURN(region, holder.value().Nested(kBufferData));
    return FlatTable::Root(region, kMetadataIdentifier);
  }
  return NoIndex("is a model without metadata");
}

// Returns the first element of a vector of tables, if it has any.
Result<std::optional<FlatTable>> First(const FlatTable& table, unsigned field) {
  FlatVector vector;
  SF_ASSIGN_OR_RETURN(vector, table.Vector(field, kTableWidth));
  if (vector.count == 0) return std::optional<FlatTable>();
  const Result<FlatTable> element = table.Element(vector, 0);
  if (!element.ok()) return element.status();
  return std::optional<FlatTable>(element.value());
}

// Returns the name of the index among the files of the first output tensor.
Result<std::string> IndexName(const FlatTable& metadata) {
  std::optional<FlatTable> subgraph, output;
  SF_ASSIGN_OR_RETURN(subgraph, First(metadata, kMetadataSubgraphs));
  if (subgraph) {
    SF_ASSIGN_OR_RETURN(output, First(*subgraph, kSubgraphOutputs));
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
  const Result<FlatTable> root = FlatTable::Root({&source, 0, source.size()}, kModelIdentifier);
  if (!root.ok()) return Damaged("the file is neither a complete TFLite model nor a complete index; download it again");
  const Result<FlatTable> metadata = Metadata(root.value());
  if (!metadata.ok()) return metadata.status();
  std::string name;
  SF_ASSIGN_OR_RETURN(name, IndexName(metadata.value()));
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
