# What `make install` lays down: program, library, headers, pkg-config file, the shipped model, manual page, bash completion,
# systemd unit and its settings.  Components: program, library, development.
include(GNUInstallDirs)
install(TARGETS moefuse RUNTIME DESTINATION ${CMAKE_INSTALL_BINDIR} COMPONENT program)
install(TARGETS moefuse_shared LIBRARY DESTINATION ${CMAKE_INSTALL_LIBDIR} COMPONENT library NAMELINK_COMPONENT development)
if(TARGET moefuse_cuda)
  install(TARGETS moefuse_cuda LIBRARY DESTINATION ${CMAKE_INSTALL_LIBDIR} COMPONENT library)
endif()
install(FILES include/moefuse.h include/moefuse_engine.h DESTINATION ${CMAKE_INSTALL_INCLUDEDIR} COMPONENT development)
install(DIRECTORY models/word-problems DESTINATION ${CMAKE_INSTALL_DATADIR}/moefuse/models COMPONENT program)
install(FILES docs/server.md docs/reverse-proxy.md DESTINATION ${CMAKE_INSTALL_DATADIR}/doc/moefuse COMPONENT program)

# The prefix is only known at install time (cmake --install --prefix), so files that name places are written then.
set(places "
  set(moefuse_libdir \"${CMAKE_INSTALL_LIBDIR}\")
  set(moefuse_includedir \"${CMAKE_INSTALL_INCLUDEDIR}\")
  set(moefuse_version \"${PROJECT_VERSION}\")
  set(BINDIR \"\${CMAKE_INSTALL_PREFIX}/${CMAKE_INSTALL_BINDIR}\")
  set(DATADIR \"\${CMAKE_INSTALL_PREFIX}/${CMAKE_INSTALL_DATADIR}\")
  set(DOCDIR \"\${DATADIR}/doc/moefuse\")
  set(SYSCONFDIR \"\${CMAKE_INSTALL_PREFIX}/etc\")
  if(CMAKE_INSTALL_PREFIX STREQUAL \"/usr\")
    set(SYSCONFDIR /etc)
  endif()
")
install(CODE "${places}
  configure_file(\"${CMAKE_SOURCE_DIR}/cmake/moefuse.pc.in\" \"${CMAKE_BINARY_DIR}/moefuse.pc\" @ONLY)
" COMPONENT development)
install(FILES ${CMAKE_BINARY_DIR}/moefuse.pc DESTINATION ${CMAKE_INSTALL_LIBDIR}/pkgconfig COMPONENT development)

# The program lists its own flags for the manual and for bash.
install(CODE "${places}
  set(EMULATOR \"${CMAKE_CROSSCOMPILING_EMULATOR}\")
  set(PROGRAM \"$<TARGET_FILE:moefuse>\")
  include(\"${CMAKE_SOURCE_DIR}/cmake/manual.cmake\")
  moefuse_manual(\"${CMAKE_SOURCE_DIR}/docs/moefuse.1.in\" \"${CMAKE_BINARY_DIR}/moefuse.1\")
  execute_process(COMMAND \${EMULATOR} \${PROGRAM} --completion bash OUTPUT_FILE \"${CMAKE_BINARY_DIR}/moefuse.bash\"
                  COMMAND_ERROR_IS_FATAL ANY)
  configure_file(\"${CMAKE_SOURCE_DIR}/packaging/moefuse.service.in\" \"${CMAKE_BINARY_DIR}/moefuse.service\" @ONLY)
  file(INSTALL DESTINATION \"\${SYSCONFDIR}/moefuse\" TYPE FILE FILES \"${CMAKE_SOURCE_DIR}/packaging/moefuse.env\")
" COMPONENT program)
install(CODE "execute_process(COMMAND gzip -9nkf \"${CMAKE_BINARY_DIR}/moefuse.1\" COMMAND_ERROR_IS_FATAL ANY)"
  COMPONENT program)
install(FILES ${CMAKE_BINARY_DIR}/moefuse.1.gz DESTINATION ${CMAKE_INSTALL_MANDIR}/man1 COMPONENT program)
install(FILES ${CMAKE_BINARY_DIR}/moefuse.bash DESTINATION ${CMAKE_INSTALL_DATADIR}/bash-completion/completions RENAME moefuse
  COMPONENT program)
install(FILES ${CMAKE_BINARY_DIR}/moefuse.service DESTINATION lib/systemd/system COMPONENT program)
include(${CMAKE_SOURCE_DIR}/cmake/package.cmake)
