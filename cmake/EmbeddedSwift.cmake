# add_embedded_swift_module(<name> SOURCES … [IMPORTS <module>…] [DEPENDS <header>…])
#
# Compiles one Swift module in Embedded mode, whole, into one object; its path is <name>_OBJECT. A
# command of our own rather than CMake's Swift language: that one expects an object per source and
# knows no Embedded mode, which is what frees the library from the Swift runtime. A Debug build has line tables alone: with -g
# and without -O swiftc would write a second object, of the module, to the same path.
function(add_embedded_swift_module name)
  cmake_parse_arguments(PARSE_ARGV 1 arg "" "" "SOURCES;IMPORTS;DEPENDS")
  set(folder "${CMAKE_CURRENT_BINARY_DIR}/swift")
  file(MAKE_DIRECTORY "${folder}")
  set(object "${folder}/${name}.o")
  set(imported ${arg_IMPORTS})
  list(TRANSFORM imported PREPEND "${folder}/")
  list(TRANSFORM imported APPEND ".swiftmodule")

  add_custom_command(
    OUTPUT "${object}" "${folder}/${name}.swiftmodule"
    COMMAND "${BATCHNORM_SWIFTC}"
      -module-name "${name}" -package-name batchnorm -swift-version 6
      -enable-experimental-feature Embedded -enable-experimental-feature Lifetimes -parse-as-library -wmo
      "$<IF:$<CONFIG:Debug>,-Onone;-gline-tables-only,-O>" "$<$<CONFIG:RelWithDebInfo>:-g>"
      "$<$<BOOL:${BATCHNORM_STRICT}>:-warnings-as-errors>"
      -Xfrontend -function-sections
      -file-prefix-map "${PROJECT_SOURCE_DIR}=."
      -module-cache-path "${folder}/cache"
      -I "${PROJECT_SOURCE_DIR}/include"
      -I "${PROJECT_SOURCE_DIR}/Sources/CBatchNormKernels/include"
      -I "${folder}"
      -emit-module -emit-module-path "${folder}/${name}.swiftmodule"
      -c -o "${object}" ${arg_SOURCES}
    DEPENDS ${arg_SOURCES} ${arg_DEPENDS} ${imported}
    COMMENT "Building Swift module ${name}"
    COMMAND_EXPAND_LISTS VERBATIM)
  set_source_files_properties("${object}" PROPERTIES GENERATED ON EXTERNAL_OBJECT ON)
  set(${name}_OBJECT "${object}" PARENT_SCOPE)
endfunction()
