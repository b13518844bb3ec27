package config

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"reflect"

	"github.com/taskerhq/tasker/safetext"
)

// File is the name of the file in the working folder, which may be missing.
const File = "tasker.yaml"

// FileVariable names another file, which then must exist; so does --config.
const FileVariable = "TASKER_CONFIG"

// Sources are where settings come from.
type Sources struct {
	File   string                       // of --config; empty: FileVariable, else File if there is one
	Getenv func(string) string          // empty: not set
	Flags  map[string]string            // by key of the setting; items of a list are joined by commas
	Read   func(string) ([]byte, error) // default os.ReadFile
}

// Origin is where a value came from.
type Origin struct {
	Source string // default, file, environment or flag
	Place  string // tasker.yaml:12, TASKER_WORKER_LEASE, --lease
}

// String is how `tasker config show` prints it.
func (o Origin) String() string {
	if o.Place == "" {
		return o.Source
	}
	return o.Source + " " + o.Place
}

// Loaded are settings with their origins.
type Loaded struct {
	Config
	File    string // that was read; empty: none
	origins map[string]Origin
}

// Defaults returns the settings of somebody who sets nothing.
func Defaults() *Loaded {
	l := &Loaded{origins: map[string]Origin{}}
	for i := range Settings {
		s := &Settings[i]
		value, _ := s.parse(s.Default) // a test has checked the table
		s.set(&l.Config, value)
		l.origins[s.Key] = Origin{Source: "default"}
	}
	return l
}

// Load reads all sources. The error is Errors, with everything that is wrong,
// or says that the file can't be read.
func Load(from Sources) (*Loaded, error) {
	l := Defaults()
	var problems Errors
	inFile, err := l.readFile(from)
	if err != nil && !errors.As(err, &problems) {
		return nil, err
	}
	for i := range Settings {
		s := &Settings[i]
		if v, ok := inFile[s.Key]; ok {
			s.set(&l.Config, v.value)
			l.origins[s.Key] = Origin{"file", v.place}
		}
		take := func(origin Origin, text string) {
			value, fault := s.parse(text)
			if fault != "" {
				problems.add(origin.Place, false, "%s %s", s.Key, fault)
				return
			}
			s.set(&l.Config, value)
			l.origins[s.Key] = origin
		}
		for _, name := range s.Variables() {
			if text := from.Getenv(name); text != "" {
				take(Origin{"environment", name}, text)
				break
			}
		}
		if text, given := from.Flags[s.Key]; given {
			take(Origin{"flag", "--" + s.Flag}, text)
		}
	}
	if err := problems.err(); err != nil {
		return nil, err
	}
	return l, nil
}

func (l *Loaded) readFile(from Sources) (map[string]found, error) {
	read := from.Read
	if read == nil {
		read = os.ReadFile
	}
	path, place := from.File, "--config"
	if path == "" {
		path, place = from.Getenv(FileVariable), FileVariable
	}
	named := path != ""
	if !named {
		path = File
	}
	data, err := read(path)
	switch {
	case errors.Is(err, fs.ErrNotExist) && !named:
		return nil, nil
	case err != nil && named:
		return nil, Errors{{Place: place, Message: fmt.Sprintf("the settings can't be read: %s; name a file, or make one: tasker config init > %s", err, File)}}
	case err != nil:
		return nil, fmt.Errorf("read the settings: %w", err)
	}
	l.File = path
	return parse(path, data)
}

// Origin says where the value of a key came from.
func (l *Loaded) Origin(key string) Origin { return l.origins[key] }

// Shown is a value for eyes: passwords are hidden.
func (l *Loaded) Shown(s *Setting) string {
	if s.Kind == URL {
		return safetext.MaskAddress(s.text(&l.Config))
	}
	if s.Kind == Secret && s.text(&l.Config) != "" {
		return safetext.Filtered
	}
	return s.text(&l.Config)
}

// Fault makes Errors of something that is wrong with a value and that only
// its user could find out.
func (l *Loaded) Fault(key, format string, args ...any) error {
	var p Errors
	o := l.origins[key]
	p.add(o.Place, o.Source == "file", format, args...)
	return p
}

// Change is a setting whose value is another one now.
type Change struct {
	Key, Old, New string // values for eyes
}

// Adopt returns the settings of a running worker after its sources were read
// again: what may change while it runs as it is in next, the rest as it was.
// changed and pending list what differs; pending takes a new start.
func (l *Loaded) Adopt(next *Loaded) (now *Loaded, changed, pending []Change) {
	now = &Loaded{Config: l.Config, File: next.File, origins: map[string]Origin{}}
	for i := range Settings {
		s := &Settings[i]
		from := l
		if s.Live {
			from = next
			reflect.ValueOf(s.field(&now.Config)).Elem().Set(reflect.ValueOf(s.field(&next.Config)).Elem())
		}
		now.origins[s.Key] = from.origins[s.Key]
		switch change := (Change{s.Key, l.Shown(s), next.Shown(s)}); {
		case s.text(&l.Config) == s.text(&next.Config):
		case s.Live:
			changed = append(changed, change)
		default:
			pending = append(pending, change)
		}
	}
	return now, changed, pending
}
