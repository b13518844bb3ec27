# frozen_string_literal: true

RSpec.describe "docs/ruby.md" do
  let(:text) { File.read(File.join(Contract::FOLDER, "../docs/ruby.md")) }

  it "has every row of the contracts" do
    errors = contract("errors")
    types = contract("types")
    rows = errors["sqlstates"].map { |row| "| `#{row['sqlstate']}` | #{"`#{row['ruby']}`" unless row['ruby'].empty?} |" } +
           errors["failures"].map { |row| "| `#{row['code']}` | `#{row['ruby']}` | `#{row['go']}` |" } +
           types["ruby"].map { |row| "| #{row['what']} |" } + types["go"].map { |row| "| #{row['type']} |" }

    expect(rows.reject { |row| text.include?(row) }).to be_empty
  end

  it "has every error of the gem under its parent" do
    errors = TaskerCore.constants.map { |name| TaskerCore.const_get(name) }.select { |constant| constant.is_a?(Class) && constant < TaskerCore::Error }
    told = text[/^Error\n(.*?)```/m, 1].lines.each_with_object([[0, "Error"]]) do |line, list|
      depth = line.index(/[A-Z]/) / 4
      list << [depth, line[/[A-Z]\w+/], list.reverse.find { |above, _| above < depth }[1]]
    end

    expect(told.drop(1).map { |_, name, parent| [name, parent] }).to match_array(errors.map { |error| [error, error.superclass].map { |c| c.name[/\w+\z/] } })
  end

  it "names the filters that there are" do
    expect(text.tr("\n", " ")).to include("(#{TaskerCore::SecretFilter::DEFAULTS.join(', ')})")
  end

  it "calls no method that there isn't" do
    called = text.scan(/\b(?:coordinator|registry)\.(\w+)/).flatten.uniq

    expect(called.reject { |name| [TaskerCore::WorkflowCoordinator, TaskerCore::TaskHandlerRegistry].any? { |owner| owner.method_defined?(name) } })
      .to be_empty
    expect(called.size).to be > 5
  end
end
