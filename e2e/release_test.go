package e2e

import (
	"bytes"
	"crypto/sha256"
	"debug/buildinfo"
	"debug/elf"
	"encoding/json"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"runtime"
	"strings"
	"testing"
)

// architecture is one that is released, and its names.
type architecture struct {
	goarch, deb, rpm string
	machine          elf.Machine
}

var architectures = []architecture{
	{"amd64", "amd64", "x86_64", elf.EM_X86_64},
	{"arm64", "arm64", "aarch64", elf.EM_AARCH64},
	{"arm", "armhf", "armv6hl", elf.EM_ARM},
	{"riscv64", "riscv64", "riscv64", elf.EM_RISCV},
	{"s390x", "s390x", "s390x", elf.EM_S390},
	{"ppc64le", "ppc64el", "ppc64le", elf.EM_PPC64},
}

// anyGit lets git read a checkout of somebody else's: these tests are root's.
var anyGit = []string{"GIT_CONFIG_COUNT=1", "GIT_CONFIG_KEY_0=safe.directory", "GIT_CONFIG_VALUE_0=*"}

// elsewhere is another builder: its folder, name, time zone, language, umask, flags, and how much it has of the history.
const elsewhere = `hostname elsewhere
umask 077
export TZ=Pacific/Kiritimati LANG=tr_TR.UTF-8 USER=somebody GOFLAGS=-buildvcs=true GOAMD64=v3 GOARM=7
`

// TestRelease makes a release of this commit twice, in different places: the bytes are the same, and are what they should be. make
// test makes one for this machine alone; with TULLE_RELEASE=all it is one for all, and the second one compiles all anew.
func TestRelease(t *testing.T) {
	t.Parallel()
	arches, fresh := []string{runtime.GOARCH}, ""
	if os.Getenv("TULLE_RELEASE") == "all" {
		arches, fresh = nil, "export GOCACHE="+t.TempDir()+"\n"
		for _, a := range architectures {
			arches = append(arches, a.goarch)
		}
	}
	here, there := filepath.Join(t.TempDir(), "here"), filepath.Join(t.TempDir(), "some", "where", "else")
	clone(t, here)
	clone(t, there, "--depth=1")
	both := "env -u GOAMD64 make build VERSION=1.0.0-rc.1\n deploy/package/release 1.0.0-rc.1 bin/release " // make build is for what it is told
	buildIn(t, here, both+strings.Join(arches, " "))
	buildIn(t, there, elsewhere+fresh+both+runtime.GOARCH)

	sameBytes(t, filepath.Join(here, "bin"), filepath.Join(there, "bin"))
	dir := filepath.Join(here, "bin", "release")
	command(t, dir, "sha256sum", "--check", "--strict", "--quiet", "SHA256SUMS")
	for _, a := range architectures {
		if len(arches) > 1 || a.goarch == runtime.GOARCH {
			releasedBinary(t, dir, a)
			releasedPackages(t, dir, a)
		}
	}
}

// clone makes a checkout of what is committed.
func clone(t *testing.T, to string, options ...string) {
	t.Helper()
	from, err := filepath.Abs("..")
	if err != nil {
		t.Fatal(err)
	}
	command(t, "", append(append([]string{"git", "clone", "--quiet"}, options...), "file://"+from, to)...)
}

// buildIn runs a script in a folder, on a machine whose name is its own.
func buildIn(t *testing.T, dir, script string) {
	t.Helper()
	command(t, dir, "unshare", "--uts", "bash", "-euc", script)
}

// command runs a command in a folder and returns what it prints.
func command(t *testing.T, dir string, args ...string) string {
	t.Helper()
	cmd := exec.CommandContext(t.Context(), args[0], args[1:]...)
	cmd.Dir, cmd.Env = dir, append(os.Environ(), anyGit...)
	out, err := cmd.CombinedOutput()
	if err != nil {
		t.Fatalf("%s: %v\n%s", strings.Join(args, " "), err, out)
	}
	return string(out)
}

// sameBytes fails unless each file that was made there was made here, too. Of several architectures, the licences are for all.
func sameBytes(t *testing.T, here, there string) {
	t.Helper()
	paths, err := filepath.Glob(filepath.Join(there, "release", "*"+runtime.GOARCH+"*"))
	if err != nil || len(paths) < 3 {
		t.Fatalf("made were %v, %v", paths, err)
	}
	paths = append(paths, only(t, filepath.Join(there, "release", "*.rpm")), filepath.Join(there, "tulle"))
	for _, path := range paths {
		other := filepath.Join(here, strings.TrimPrefix(path, there))
		a, err := os.ReadFile(path)
		if err != nil {
			t.Fatal(err)
		}
		if b, err := os.ReadFile(other); err != nil || !bytes.Equal(a, b) {
			t.Errorf("%s of %d bytes is not %s of %d bytes (%v)", other, len(b), path, len(a), err)
		}
	}
}

// releasedBinary fails unless a binary is for its architecture, static, and as its bill of materials says.
func releasedBinary(t *testing.T, dir string, a architecture) {
	t.Helper()
	path := filepath.Join(dir, "tulle_1.0.0-rc.1_linux_"+a.goarch)
	f, err := elf.Open(path)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	if f.Machine != a.machine {
		t.Errorf("%s is for %s", path, f.Machine)
	}
	for _, p := range f.Progs {
		if p.Type == elf.PT_INTERP {
			t.Errorf("%s is not static", path)
		}
	}
	content, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	text, err := os.ReadFile(path + ".cdx.json")
	if err != nil {
		t.Fatal(err)
	}
	info, err := buildinfo.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	linked := map[string]string{"stdlib": strings.TrimPrefix(info.GoVersion, "go")}
	for _, m := range info.Deps {
		linked[m.Path] = m.Version
	}
	materials(t, text, fmt.Sprintf("%x", sha256.Sum256(content)), linked)
}

// materials fails unless a bill of materials is about the binary with that checksum, and names all that is linked in, with licences.
func materials(t *testing.T, text []byte, sum string, linked map[string]string) {
	t.Helper()
	type component struct {
		Name, Version, Purl string
		Hashes              []struct{ Alg, Content string }
		Licenses            []struct {
			License    struct{ ID string }
			Expression string
		}
	}
	var bom struct {
		BOMFormat  string
		Metadata   struct{ Component component }
		Components []component
	}
	if err := json.Unmarshal(text, &bom); err != nil {
		t.Fatal(err)
	}
	if c := bom.Metadata.Component; bom.BOMFormat != "CycloneDX" || c.Version != "1.0.0-rc.1" || len(c.Hashes) != 1 || c.Hashes[0].Content != sum {
		t.Errorf("the bill of materials (%s) is of %+v, and the binary's checksum is %s", bom.BOMFormat, c, sum)
	}
	if len(bom.Components) != len(linked) {
		t.Errorf("the bill of materials names %d modules of %d", len(bom.Components), len(linked))
	}
	for _, c := range bom.Components {
		if linked[c.Name] != c.Version || c.Purl != "pkg:golang/"+c.Name+"@"+c.Version || len(c.Licenses) != 1 || c.Licenses[0].License.ID+c.Licenses[0].Expression == "" {
			t.Errorf("linked in is version %s of %+v", linked[c.Name], c)
		}
	}
}

// packageOnly is what a deb or an rpm has for itself.
var packageOnly = regexp.MustCompile(`^/usr/share/(doc/tulle/(changelog\.Debian\.gz|copyright)|lintian/.*|licenses/.*|zsh/(vendor-completions|site-functions)/_tulle)$`)

// releasedPackages fails unless a deb and an rpm of an architecture have the same files and scripts.
func releasedPackages(t *testing.T, dir string, a architecture) {
	t.Helper()
	deb, rpm := filepath.Join(dir, "tulle_1.0.0~rc.1-1_"+a.deb+".deb"), filepath.Join(dir, "tulle-1.0.0~rc.1-1."+a.rpm+".rpm")
	if got := command(t, "", "dpkg-deb", "--field", deb, "Version", "Architecture"); got != "Version: 1.0.0~rc.1-1\nArchitecture: "+a.deb+"\n" {
		t.Errorf("%s is\n%s", deb, got)
	}
	if got := command(t, "", "rpm", "--query", "--queryformat=%{VERSION} %{RELEASE} %{ARCH} %{BUILDHOST}", "--package", rpm); got != "1.0.0~rc.1 1 "+a.rpm+" localhost" {
		t.Errorf("%s is\n%s", rpm, got)
	}
	var files []string
	for line := range strings.Lines(command(t, "", "dpkg-deb", "--contents", deb)) {
		mode, path, _ := strings.Cut(strings.TrimSpace(line), " ./")
		if path = "/" + path; !strings.HasPrefix(mode, "d") && !packageOnly.MatchString(path) {
			files = append(files, path)
		}
	}
	var others []string
	for path := range strings.Lines(command(t, "", "rpm", "--query", "--list", "--package", rpm)) {
		if path = strings.TrimSpace(path); path != "/etc/tulle" && !packageOnly.MatchString(path) {
			others = append(others, path)
		}
	}
	if strings.Join(files, "\n") != strings.Join(others, "\n") || len(files) < 30 {
		t.Errorf("the deb has\n%s\nand the rpm\n%s", strings.Join(files, "\n"), strings.Join(others, "\n"))
	}
	scripts := command(t, "", "rpm", "--query", "--scripts", "--package", rpm)
	for _, name := range []string{"postinst", "prerm", "postrm"} {
		if script := command(t, "", "dpkg-deb", "--info", deb, name); !strings.Contains(scripts, strings.TrimSpace(script)) {
			t.Errorf("the rpm's scripts lack the deb's %s:\n%s\n%s", name, script, scripts)
		}
	}
	if got := command(t, "", "rpm", "--query", "--configfiles", "--package", rpm); got != "/etc/tulle/agent.env\n/etc/tulle/network.json.example\n" {
		t.Errorf("the rpm's files of configuration are\n%s", got)
	}
}
