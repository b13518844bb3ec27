package main

import (
	"fmt"
	"os"

	"github.com/spf13/pflag"

	"github.com/taskerhq/tasker/template"
)

// templateFlags say how template files are read. Every command that reads them
// has the same ones.
type templateFlags struct {
	environment string
	allowed     []string
}

func (f *templateFlags) register(flags *pflag.FlagSet, environment string) {
	flags.StringVar(&f.environment, "environment", firstOf(os.Getenv("TASKER_ENV"), os.Getenv("RAILS_ENV"), environment),
		"whose overlays to apply to template files ($TASKER_ENV, $RAILS_ENV)")
	flags.StringSliceVar(&f.allowed, "allow-env", nil, "environment variable that template files may use as ${NAME}; may be given more than once")
}

func (f *templateFlags) options() (template.Options, error) {
	variables := map[string]string{}
	for _, name := range f.allowed {
		value, set := os.LookupEnv(name)
		if !set {
			return template.Options{}, &usageError{fmt.Errorf("--allow-env %s: the environment has no such variable", name)}
		}
		variables[name] = value
	}
	return template.Options{Environment: f.environment, Variables: variables}, nil
}
