package template_test

import (
	"errors"
	"os"
	"path/filepath"
	"strings"
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
	if _, err := template.LoadFolder(filepath.Join(dir, "README.md"), template.Options{}); err == nil {
		t.Error("took a file for a folder")
	}
}
