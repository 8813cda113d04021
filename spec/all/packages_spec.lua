-- The programs that `scripts/bootstrap all` installs are there and start, so that no other spec of spec/all
-- needs to ask; and `make test` doesn't run what lies here.
local function output(command)
  local p = assert(io.popen("{ " .. command .. "\n} 2>&1 </dev/null; echo \" status $?\""))
  local text = p:read "*a"
  p:close()
  return text
end

describe("make test-all", function()
  for name, said in pairs {
    ["command -v sbatch"] = "/sbatch", ["slurmctld -V"] = "slurm", ["slurmd -V"] = "slurm",
    ["munged --version"] = "munge", ["chromium --version"] = "Chromium", ["tmux -V"] = "tmux", ["less --version"] = "less ",
    ["zsh --version"] = "zsh", ["fc-list"] = "DejaVu",
  } do
    it("has " .. name, function()
      local text = output("PATH=$PATH:/usr/sbin " .. name)
      assert.matches(said, text)
      assert.matches(" status 0\n$", text)
    end)
  end

  it("runs spec/all, which make test leaves alone", function()
    local default, all = output "busted --list", output "busted --run=all --list"
    assert.is_nil(default:find("spec/all/", 1, true))
    assert.is_truthy(all:find("spec/all/packages_spec.lua", 1, true))
    assert.is_truthy(all:find("spec/cli_spec.lua", 1, true))
  end)

  it("says in a sentence what it could not install, and fails", function()
    local text = output [[
      dir=$(mktemp -d); cp -R scripts "$dir"; mkdir "$dir/bin"; cd "$dir"
      printf '#!/bin/sh\nexit 1\n' > bin/dpkg-query
      printf '#!/bin/sh\necho "E: no network" >&2\nexit 100\n' > bin/apt-get
      printf '#!/bin/sh\nexec "$@"\n' > bin/sudo
      chmod +x bin/*
      PATH="$dir/bin:$PATH" scripts/bootstrap all; status=$?; rm -rf "$dir"; (exit $status)]]
    assert.matches("E: no network\nnibble: apt%-get could not install gcc .* chromium .*; install them, then run make again\n status 2\n$",
      text)
    assert.matches('takes nothing or "all", found "most"\n status 2', output "scripts/bootstrap most")
  end)
end)
