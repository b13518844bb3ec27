# frozen_string_literal: true

# The tables of the shop; tasker's are not models here.
class ApplicationRecord < ActiveRecord::Base
  self.abstract_class = true
end
