# Writes the JSON files of a folder into one C file, as the table of core/presets.h:
#   cmake -DOUT=gen/presets.c -DDIR=configs/models -P cmake/embed_presets.cmake
cmake_minimum_required(VERSION 3.18)

if(NOT DEFINED OUT OR NOT DEFINED DIR)
    message(FATAL_ERROR "usage: cmake -DOUT=FILE.c -DDIR=FOLDER -P embed_presets.cmake")
endif()

file(GLOB files "${DIR}/*.json") # sorted by name
if(NOT files)
    message(FATAL_ERROR "${DIR}: expected JSON files, found none")
endif()

set(rows "")
set(count 0)
foreach(file IN LISTS files)
    get_filename_component(name "${file}" NAME)
    string(REGEX REPLACE "\\.json$" "" name "${name}")
    file(READ "${file}" text)
    string(REPLACE "\\" "\\\\" text "${text}")
    string(REPLACE "\"" "\\\"" text "${text}")
    string(REPLACE "\n" "\\n\"\n     \"" text "${text}")
    string(APPEND rows "    {\"${name}\",\n     \"${text}\"},\n")
    math(EXPR count "${count} + 1")
endforeach()

file(WRITE "${OUT}.new"
    "// Made by cmake/embed_presets.cmake from ${count} files.\n"
    "#include \"core/presets.h\"\n\n"
    "const struct tsr_preset tsr_presets[] = {\n${rows}};\n"
    "const int tsr_n_presets = ${count};\n")
file(RENAME "${OUT}.new" "${OUT}")
