package template_test

import (
	"errors"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"

	"github.com/taskerhq/tasker/template"
)

// folder writes files, by path, below a new folder.
func folder(t *testing.T, files map[string]string) string {
	t.Helper()
	dir := t.TempDir()
	for path, text := range files {
		path = filepath.Join(dir, path)
		if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(path, []byte(text), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	return dir
}

func named(name string) string {
	return "name: " + name + "\nstep_templates: [{name: s, handler: h}]\n"
}

func TestAFolderIsReadInOrder(t *testing.T) {
	dir := folder(t, map[string]string{
		"b.yaml":            named("b"),
		"a.yml":             named("a"),
		"billing/c.yaml":    named("c"),
		"billing/v2/c.yaml": named("c") + "version: 2.0.0\n",
		"README.md":         "no template",
		".hidden.yaml":      "nor: this",
		".git/config.yaml":  "nor: this",
	})
	link := filepath.Join(t.TempDir(), "templates")
	if err := os.Symlink(dir, link); err != nil {
		t.Skip("no links here:", err)
	}
	for _, root := range []string{dir, link} {
		loaded, err := template.LoadFolder(root, template.Options{})
		if err != nil {
			t.Fatal(err)
		}
		var got []string
		for _, l := range loaded {
			file, err := filepath.Rel(root, l.File)
			if err != nil {
				t.Fatal(err)
			}
			got = append(got, file+" "+l.Template.FullName())
		}
		want := "a.yml default/a@0.1.0, b.yaml default/b@0.1.0, billing/c.yaml default/c@0.1.0, billing/v2/c.yaml default/c@2.0.0"
		if strings.Join(got, ", ") != want {
			t.Errorf("got %v", got)
		}
	}
}

func TestAFolderIsReadWholeBeforeItIsRefused(t *testing.T) {
	dir := folder(t, map[string]string{
		"a.yaml": named("a"),
		"b.yaml": "version: 1.0.0\n" + named("a") + "namespace_name: other\n",
		"c.yaml": "# again\n" + named("a"),
		"d.yaml": named("d") + "nmespace_name: x\n",
		"e.yaml": "name: [\n",
	})
	loaded, err := template.LoadFolder(dir, template.Options{})
	var wrong template.Errors
	if !errors.As(err, &wrong) || loaded != nil {
		t.Fatalf("got %v, %v", loaded, err)
	}
	want := strings.Join([]string{
		"c.yaml:2:7: default/a@0.1.0 is defined in a.yaml already; give one of the two another name or version",
		`d.yaml:3:1: unknown key "nmespace_name" in the template; did you mean "namespace_name"?`,
		"e.yaml:2:1: malformed YAML: while parsing a flow node: did not find expected node content",
	}, "\n")
	if got := strings.ReplaceAll(wrong.Error(), dir+string(filepath.Separator), ""); got != want {
		t.Errorf("got:\n%s", got)
	}
}

// A ConfigMap's files are links to ..data/FILE, and ..data is a link to a folder.
func TestLinksWithinAFolderAreRead(t *testing.T) {
	dir := folder(t, map[string]string{"..2026_11_30/a.yaml": named("a"), "..2026_11_30/b.yaml": named("b"), "part/c.yaml": named("c")})
	for link, target := range map[string]string{
		"..data": "..2026_11_30", "a.yaml": "..data/a.yaml", "b.yaml": filepath.Join(dir, "..data", "b.yaml"), "part/d.yaml": "../.hidden.yaml",
	} {
		if err := os.Symlink(target, filepath.Join(dir, link)); err != nil {
			t.Fatal(err)
		}
	}
	if err := os.WriteFile(filepath.Join(dir, ".hidden.yaml"), []byte(named("d")), 0o600); err != nil {
		t.Fatal(err)
	}
	t.Chdir(filepath.Dir(dir))
	for _, path := range []string{dir, filepath.Base(dir), "./" + filepath.Base(dir) + "/"} {
		loaded, err := template.LoadFolder(path, template.Options{})
		if err != nil || len(loaded) != 4 {
			t.Errorf("%s: %d templates, %v", path, len(loaded), err)
		}
	}
}

// What is no template is refused by its name, and is never waited for.
func TestAFolderHoldsRegularFilesOnly(t *testing.T) {
	dir := folder(t, map[string]string{"a.yaml": named("a"), "large.yaml": named("large") + strings.Repeat("# much\n", 1<<18)})
	outside := folder(t, map[string]string{"secret.yaml": named("secret")})
	for link, target := range map[string]string{
		"dangling.yaml": "nowhere.yaml", "device.yaml": "/dev/zero", "escapes.yaml": "../" + filepath.Base(outside) + "/secret.yaml",
		"folder.yaml": ".", "outside.yaml": filepath.Join(outside, "secret.yaml"), "to_pipe.yaml": "pipe.yaml",
	} {
		if err := os.Symlink(target, filepath.Join(dir, link)); err != nil {
			t.Fatal(err)
		}
	}
	if err := syscall.Mkfifo(filepath.Join(dir, "pipe.yaml"), 0o600); err != nil {
		t.Fatal(err)
	}
	socket, err := (&net.ListenConfig{}).Listen(t.Context(), "unix", filepath.Join(dir, "socket.yaml"))
	if err != nil {
		t.Fatal(err)
	}
	defer socket.Close()
	_, err = template.LoadFolder(dir, template.Options{})
	var wrong template.Errors
	if !errors.As(err, &wrong) {
		t.Fatal(err)
	}
	want := map[string]string{
		"dangling.yaml": "does not exist", "device.yaml": "leads out of the folder, to /dev/zero", "escapes.yaml": "leads out of the folder",
		"folder.yaml": "this is a folder", "outside.yaml": "leads out of the folder", "to_pipe.yaml": "this is a named pipe", "pipe.yaml": "this is a named pipe",
		"socket.yaml": "this is a socket", "large.yaml": "larger than 1048576 bytes",
	}
	for _, problem := range wrong {
		if file := filepath.Base(problem.File); want[file] == "" || !strings.Contains(problem.Message, want[file]) {
			t.Errorf("%s", problem)
		}
	}
	if len(wrong) != len(want) {
		t.Errorf("%d problems, not %d", len(wrong), len(want))
	}
}

func TestAFolderHasABound(t *testing.T) {
	dir := t.TempDir()
	for i := range 5001 {
		if err := os.WriteFile(filepath.Join(dir, fmt.Sprintf("%d.yaml", i)), nil, 0o600); err != nil {
			t.Fatal(err)
		}
	}
	if _, err := template.LoadFolder(dir, template.Options{}); err == nil || !strings.Contains(err.Error(), dir+" holds more than 5000 templates") {
		t.Error(err)
	}
}

// A single file may be read where a folder may, also by a link to it.
func TestASingleFileIsLoaded(t *testing.T) {
	dir := folder(t, map[string]string{"a.yaml": named("a"), "b.txt": named("b"), "wrong.yaml": "name: ["})
	link := filepath.Join(t.TempDir(), "link.yaml")
	if err := os.Symlink(filepath.Join(dir, "a.yaml"), link); err != nil {
		t.Fatal(err)
	}
	t.Chdir(dir)
	for path, want := range map[string]string{filepath.Join(dir, "a.yaml"): "a", "b.txt": "b", "./a.yaml": "a", link: "a"} {
		loaded, err := template.Load(path, template.Options{})
		if err != nil || len(loaded) != 1 || loaded[0].Template.Name != want || loaded[0].File != path {
			t.Errorf("%s: %v, %v", path, loaded, err)
		}
	}
	if loaded, err := template.Load(dir+"/none", template.Options{}); !errors.Is(err, os.ErrNotExist) {
		t.Error(loaded, err)
	}
	if err := syscall.Mkfifo("pipe.yaml", 0o600); err != nil {
		t.Fatal(err)
	}
	for path, want := range map[string]string{"pipe.yaml": "pipe.yaml:1:1: this is a named pipe", "/dev/zero": "/dev/zero:1:1: this is a device", "wrong.yaml": "wrong.yaml:2:1: malformed YAML"} {
		if _, err := template.Load(path, template.Options{}); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%s: %v", path, err)
		}
	}
}

func TestAFolderWithoutTemplatesSaysWhatToDo(t *testing.T) {
	dir := folder(t, map[string]string{"README.md": "no template"})
	if _, err := template.LoadFolder(dir, template.Options{}); err == nil || !strings.Contains(err.Error(), "no templates in "+dir+"; put *.yaml files there") {
		t.Error(err)
	}
	missing := filepath.Join(dir, "nowhere")
	_, err := template.LoadFolder(missing, template.Options{})
	if !errors.Is(err, os.ErrNotExist) || !strings.Contains(err.Error(), "there is no folder "+missing+"; create it") {
		t.Error(err)
	}
	if _, err := template.LoadFolder(filepath.Join(dir, "README.md"), template.Options{}); err == nil || !strings.Contains(err.Error(), "README.md is a file; name the folder") {
		t.Errorf("a file for a folder: %v", err)
	}
}
