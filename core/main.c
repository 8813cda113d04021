/* main.c - the executable: LuaJIT, the embedded Lua, the stop flag on signals.
 *
 * Everything that a user types is handled by nibble.cli in Lua. With
 * NIBBLE_LUA=dir the modules come from dir instead (the tree, while developing). */
#include "nibble.h"

#include <lauxlib.h>
#include <lua.h>
#include <lualib.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

typedef struct embedded {
  const char *name, *path, *text;
  size_t size;
} embedded;
extern const embedded nb_lua_files[];

/* package.preload loader of one embedded module; the file is its upvalue. */
static int load_module(lua_State *L) {
  const embedded *file = lua_touserdata(L, lua_upvalueindex(1));
  char chunk[256];
  snprintf(chunk, sizeof chunk, "@%s", file->path);
  if (luaL_loadbuffer(L, file->text, file->size, chunk)) return lua_error(L);
  lua_pushvalue(L, 1);
  lua_call(L, 1, 1);
  return 1;
}

/* NIBBLE_SOURCE(path) -> text of an embedded file, or nil: for the session's help. */
static int source_of(lua_State *L) {
  const char *path = luaL_checkstring(L, 1);
  for (const embedded *f = nb_lua_files; f->name; f++) {
    if (strcmp(f->path, path) != 0) continue;
    lua_pushlstring(L, f->text, f->size);
    return 1;
  }
  return 0;
}

static void preload(lua_State *L) {
  lua_getglobal(L, "package");
  lua_getfield(L, -1, "preload");
  lua_newtable(L); /* recipes by name, as text */
  for (const embedded *f = nb_lua_files; f->name; f++) {
    if (strncmp(f->name, "recipes/", 8) == 0) {
      lua_pushlstring(L, f->text, f->size);
      lua_setfield(L, -2, f->name + 8);
      continue;
    }
    lua_pushlightuserdata(L, (void *)(uintptr_t)f);
    lua_pushcclosure(L, load_module, 1);
    lua_setfield(L, -3, f->name);
  }
  lua_setfield(L, LUA_REGISTRYINDEX, "nibble.recipes");
  lua_getfield(L, LUA_REGISTRYINDEX, "nibble.recipes");
  lua_setglobal(L, "NIBBLE_RECIPES");
  lua_pushcfunction(L, source_of);
  lua_setglobal(L, "NIBBLE_SOURCE");
  lua_pop(L, 2);
}

/* Ctrl-C in Lua code that calls no C job: nothing there reads the stop flag, so
 * the handler leaves a hook behind, which waits a moment: what reads the flag comes
 * first. Compiled loops ignore hooks; there a second Ctrl-C ends the process. */
enum { STOP_EVERY = 1000 };
static const double stop_after_seconds = 0.2;
static double stopped_at;
static lua_State *main_state;

static void stop_hook(lua_State *L, lua_Debug *where) {
  (void)where;
  if (nb_stop_requested() && nb_now() - stopped_at < stop_after_seconds) return;
  lua_sethook(L, NULL, 0, 0);
  if (!nb_stop_requested()) return;
  lua_pushliteral(L, "interrupted");
  lua_error(L);
}

static void on_stop(void) {
  stopped_at = nb_now();
  lua_sethook(main_state, stop_hook, LUA_MASKCOUNT, STOP_EVERY);
}

/* Threads that wait for the next parallel region sleep instead of spinning: jobs
 * are short, the writer's thread needs a core too, and on a shared machine
 * spinning costs twenty times the work. OpenMP reads its environment in its own
 * constructor: so it is linked statically, and this one goes first. What the user
 * has set stays. */
__attribute__((constructor(101))) static void sleep_while_waiting(void) {
  if (!getenv("GOMP_SPINCOUNT")) setenv("OMP_WAIT_POLICY", "passive", 0);
}

static int traceback(lua_State *L) {
  if (!lua_isstring(L, 1)) return 1;
  luaL_traceback(L, L, lua_tostring(L, 1), 1);
  return 1;
}

int main(int argc, char **argv) {
  lua_State *L = luaL_newstate();
  if (!L) {
    fputs("nibble: out of memory\n", stderr);
    return 2;
  }
  luaL_openlibs(L);
  const char *tree = getenv("NIBBLE_LUA");
  if (tree) {
    lua_getglobal(L, "package");
    lua_getfield(L, -1, "path");
    lua_pushfstring(L, "%s/?.lua;%s/?/init.lua;%s", tree, tree, lua_tostring(L, -1));
    lua_setfield(L, -3, "path");
    lua_pop(L, 2);
  } else {
    preload(L);
  }
  main_state = L;
  nb_stop_install(on_stop);
  lua_pushcfunction(L, traceback);
  lua_getglobal(L, "require");
  lua_pushliteral(L, "nibble.cli");
  int status = lua_pcall(L, 1, 1, 1);
  if (status == 0) { /* cli is a table with main(argv) -> exit status */
    lua_getfield(L, -1, "main");
    lua_newtable(L);
    for (int i = 0; i < argc; i++) {
      lua_pushstring(L, argv[i]);
      lua_rawseti(L, -2, i);
    }
    status = lua_pcall(L, 1, 1, 1);
  }
  int code = 2;
  if (status == 0) code = (int)lua_tointeger(L, -1);
  else fprintf(stderr, "nibble: %s\n", lua_tostring(L, -1));
  lua_close(L);
  return code;
}
