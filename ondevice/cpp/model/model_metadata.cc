// Finds the metadata among the buffers of a model.
#include "model/model_metadata.h"

namespace searchforge {
namespace {

constexpr char kModelIdentifier[] = "TFL3", kMetadataIdentifier[] = "M001";
constexpr char kMetadataName[] = "TFLITE_METADATA";
constexpr unsigned kModelBuffers = 4, kModelMetadata = 6;
constexpr unsigned kEntryName = 0, kEntryBuffer = 1;
constexpr unsigned kBufferData = 0;
constexpr unsigned kMetadataSubgraphs = 3;

// Returns the metadata of a model, if it has any.
Result<std::optional<FlatTable>> Metadata(const FlatTable& model) {
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
    const Result<FlatTable> root = FlatTable::Root(region, kMetadataIdentifier);
    if (!root.ok()) return root.status();
    return std::optional<FlatTable>(root.value());
  }
  return std::optional<FlatTable>();
}

}  // namespace

Result<std::optional<FlatTable>> FirstElement(const FlatTable& table, unsigned field) {
  FlatVector vector;
  SF_ASSIGN_OR_RETURN(vector, table.Vector(field, kTableWidth));
  if (vector.count == 0) return std::optional<FlatTable>();
  const Result<FlatTable> element = table.Element(vector, 0);
  if (!element.ok()) return element.status();
  return std::optional<FlatTable>(element.value());
}

Result<std::optional<FlatTable>> ReadSubgraphMetadata(const Source& source) {
  const Result<FlatTable> root = FlatTable::Root({&source, 0, source.size()}, kModelIdentifier);
  if (!root.ok()) return Damaged("the file is neither a complete TFLite model nor a complete index; download it again");
  std::optional<FlatTable> metadata;
  SF_ASSIGN_OR_RETURN(metadata, Metadata(root.value()));
  if (!metadata) return metadata;
  return FirstElement(*metadata, kMetadataSubgraphs);
}

}  // namespace searchforge
